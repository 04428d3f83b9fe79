"""What slimd and the guard's programs share, packed: the counterpart of kmod/guard.h.

Addresses are 16 bytes (IPv4 mapped), addresses and ports in network order, the rest native.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import TYPE_CHECKING

from slim.broker.endpoints import packed16

if TYPE_CHECKING:
    from slim.broker.endpoints import Address, Endpoint

LAYOUT = 1
"""SLIM_GUARD_LAYOUT: names the directory in bpffs."""

NOWHERE = bytes(16)
NEVER = (1 << 64) - 1

_SOCKET = struct.Struct("=4I16s16s2s2sIQ")
_ROUTE_KEY = struct.Struct("=I2sH16s")
_ROUTE = struct.Struct("=16s16sII2sHIQ")
_KEY_NAME = struct.Struct("=II")
_KEY = struct.Struct("=16sQ")
_SEALING_KEY = struct.Struct("=16sQQ")
_INBOUND = struct.Struct("=16s16sII2s2sIQ")
_NUMBER = struct.Struct("=I")

SIZES = {
    "sockets": (4, _SOCKET.size),
    "routes": (_ROUTE_KEY.size, _ROUTE.size),
    "inbound": (4, _INBOUND.size),
    "opening_keys": (_KEY_NAME.size, _KEY.size),
    "sealing_keys": (4, _SEALING_KEY.size),
    "counters": (4, 8),
}
"""Map -> bytes of a key and of a value. `pending` is the programs' own."""


class SocketFlag(IntFlag):
    OPEN = 1
    LISTENER = 2
    ADMIT = 4
    TOS_FIXED = 8
    BORN_BY_ACCEPT = 16
    PREAMBLE = 32


class Counter(IntEnum):
    """enum guard_counter: what the programs count, per CPU."""

    SYN_SEALED = 0
    SYN_UNSEALED = 1
    ADMITTED = 2
    DROPPED_NO_OPTION = 3
    DROPPED_FLOW = 4
    DROPPED_KEY = 5
    DROPPED_MAC = 6
    DROPPED_ACK = 7
    DROPPED_STRAY = 8
    DROPPED_MALFORMED = 9
    LABELLED = 10
    UNLABELLED = 11
    REFUSED_CONNECT = 12
    REFUSED_BIND = 13
    REFUSED_OPTION = 14


@dataclass(frozen=True, slots=True, kw_only=True)
class Shaping:
    """What policy clamps on a socket of a workload."""

    max_priority: int = 6
    """SO_PRIORITY of socket(7); above 6 needs a capability natively."""
    max_pacing: int = 0
    """SO_MAX_PACING_RATE, bytes per second; 0: no limit."""
    tos_fixed: bool = False


NO_SHAPING = Shaping()


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """Where a workload's connect to one overlay endpoint goes."""

    workload: int
    destination: Endpoint
    host: Endpoint
    source: Address
    """The overlay address that getsockname shows."""
    flow: int
    peer: int
    admit: bool
    """Whether the SYN carries the option; otherwise the record is the preamble."""
    expires_ns: int = NEVER
    """CLOCK_MONOTONIC."""

    def key(self) -> bytes:
        return route_key(self.workload, self.destination)

    def value(self) -> bytes:
        return _ROUTE.pack(
            packed16(self.host.address),
            packed16(self.source),
            self.flow,
            self.peer,
            pack_port(self.host.port),
            self.admit,
            0,
            self.expires_ns,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class InboundFlow:
    """What a SYN's flow number stands for on the accepting host."""

    flow: int
    peer: int
    workload: int
    source: Address
    """The overlay address of the workload that connects."""
    listener: Endpoint
    """The overlay endpoint that it connects to."""
    host_port: int
    expires_ns: int = NEVER

    def key(self) -> bytes:
        return pack_number(self.flow)

    def value(self) -> bytes:
        return _INBOUND.pack(
            packed16(self.source),
            packed16(self.listener.address),
            self.peer,
            self.workload,
            pack_port(self.listener.port),
            pack_port(self.host_port),
            0,
            self.expires_ns,
        )


def route_key(workload: int, destination: Endpoint) -> bytes:
    return _ROUTE_KEY.pack(workload, pack_port(destination.port), 0, packed16(destination.address))


def workload_of_route(key: bytes) -> int:
    workload: int = _ROUTE_KEY.unpack(key)[0]
    return workload


def workload_of_inbound(value: bytes) -> int:
    workload: int = _INBOUND.unpack(value)[3]
    return workload


def socket_record(
    workload: int,
    flags: SocketFlag,
    *,
    local: Endpoint | None = None,
    remote: Endpoint | None = None,
    host_port: int = 0,
    shaping: Shaping = NO_SHAPING,
) -> bytes:
    """The record of a socket; without `local` its names are 0.0.0.0:0 until it connects.

    `host_port`: where a listener with PREAMBLE listens.
    """
    if shaping.tos_fixed:
        flags |= SocketFlag.TOS_FIXED
    return _SOCKET.pack(
        workload,
        flags,
        host_port,
        0,
        NOWHERE if local is None else packed16(local.address),
        NOWHERE if remote is None else packed16(remote.address),
        pack_port(0 if local is None else local.port),
        pack_port(0 if remote is None else remote.port),
        shaping.max_priority,
        shaping.max_pacing,
    )


def local_port(record: bytes) -> int:
    """The overlay port of a socket's record; 0: the host socket's own."""
    return int.from_bytes(_SOCKET.unpack(record)[6], "big")


def key_name(peer: int, key_id: int) -> bytes:
    return _KEY_NAME.pack(peer, key_id)


def unpack_key_name(name: bytes) -> tuple[int, int]:
    peer, key_id = _KEY_NAME.unpack(name)
    return peer, key_id


def opening_key(key: bytes, expires_ns: int) -> bytes:
    return _KEY.pack(_check_key(key), expires_ns)


def sealing_key(key: bytes, expires_ns: int, key_id: int) -> bytes:
    return _SEALING_KEY.pack(_check_key(key), expires_ns, key_id)


def pack_number(number: int) -> bytes:
    return _NUMBER.pack(number)


def pack_port(port: int) -> bytes:
    return port.to_bytes(2, "big")


def _check_key(key: bytes) -> bytes:
    if len(key) != 16:
        raise ValueError(f"a SipHash key has 16 bytes, not {len(key)}")
    # The programs read two native words; SipHash defines them as little-endian.
    return struct.pack("=QQ", *struct.unpack("<QQ", key))
