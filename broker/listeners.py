"""Listeners: an overlay address:port that a workload listens on, and the host listener behind it.

    (none) --listen()--> live --last copy closed--> gone

live: the program's fd is a host socket; slimd keeps no duplicate of it. The overlay listener it
      replaced is retained (by traps, and by the keeper) for plain peers and the workload's own
      loopback, and is closed when the program's last copy is.
gone: the host port stays set aside for twice the flow lifetime, so that no flow that still lives
      somewhere reaches another listener.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, TypeVar

import msgspec

from slim.broker.endpoints import Address, Endpoint, PortRange, from_packed16
from slim.broker.slots import SlotStore, key_of

if TYPE_CHECKING:
    from collections.abc import Iterator

_R = TypeVar("_R")

KIND_LISTENER = 2
KIND_PORT = 3


class ListenerRecord(msgspec.Struct, frozen=True, array_like=True):
    """What is remembered about one listener; kept in the same memfd as connections."""

    cookie: int
    """SO_COOKIE of the host listener."""
    workload: int
    family: int
    """Of the program's socket."""
    address: bytes
    """Overlay address, unspecified for a wildcard, packed in 16 bytes."""
    dual_stack: bool
    """An AF_INET6 wildcard without IPV6_V6ONLY takes IPv4 too."""
    port: int
    host_address: bytes
    host_port: int
    pid: int
    created: float

    @property
    def local(self) -> Endpoint:
        return Endpoint(from_packed16(self.address), self.port)

    @property
    def host(self) -> Endpoint:
        return Endpoint(from_packed16(self.host_address), self.host_port)

    def serves(self, address: Address, port: int) -> bool:
        """Whether a connection to address:port belongs to this listener."""
        if port != self.port:
            return False
        own = self.local.address
        if own.is_unspecified:
            return own.version == address.version or self.dual_stack
        return own == address


class PortRecord(msgspec.Struct, frozen=True, array_like=True):
    """A host port set aside for (workload, address, port) until `until` (CLOCK_BOOTTIME s)."""

    host_port: int
    workload: int
    address: bytes
    port: int
    until: float


class HostPorts:
    """Gives out the ports of host listeners: stable per (workload, address, port), not reused
    for another within `quarantine_s` of the last use. Times are CLOCK_BOOTTIME seconds.
    """

    def __init__(self, ports: PortRange, store: SlotStore, *, quarantine_s: float) -> None:
        self._ports = ports
        self._store = store
        self.quarantine_s = quarantine_s
        self._by_port: dict[int, PortRecord] = {}
        for payload in _payloads(store, KIND_PORT):
            record = _decode(payload, PortRecord)
            if record is not None:
                self._by_port[record.host_port] = record

    def candidates(self, workload: int, address: bytes, port: int, now_s: float) -> Iterator[int]:
        """Ports to try, the one used before first; those of others left out."""
        count = self._ports.last - self._ports.first + 1
        digest = hashlib.blake2b(
            workload.to_bytes(8, "big") + address + port.to_bytes(2, "big"), digest_size=8
        ).digest()
        start = int.from_bytes(digest, "big") % count
        mine = [
            record.host_port
            for record in self._by_port.values()
            if (record.workload, record.address, record.port) == (workload, address, port)
            # The configured range may have changed since.
            and record.host_port in self._ports
        ]
        yield from mine
        for step in range(count):
            candidate = self._ports.first + (start + step) % count
            taken = self._by_port.get(candidate)
            if taken is None or (taken.until <= now_s and candidate not in mine):
                yield candidate

    def take(self, host_port: int, workload: int, address: bytes, port: int) -> None:
        """The port is in use from now on."""
        self._write(PortRecord(host_port, workload, address, port, float("inf")))

    def release(self, host_port: int, now_s: float) -> None:
        """The listener is gone; the quarantine starts."""
        record = self._by_port.get(host_port)
        if record is not None:
            self._write(msgspec.structs.replace(record, until=now_s + self.quarantine_s))

    def _write(self, record: PortRecord) -> None:
        self._by_port[record.host_port] = record
        self._store.put(key_of(KIND_PORT, record.host_port), _encoder.encode(record))


class ListenerTable:
    """Live listeners by cookie and by (workload, port); written by traps only."""

    def __init__(self, store: SlotStore) -> None:
        self._store = store
        self._by_cookie: dict[int, ListenerRecord] = {}
        for record in read_listeners(store):
            self._by_cookie[record.cookie] = record

    def __len__(self) -> int:
        return len(self._by_cookie)

    def __iter__(self) -> Iterator[ListenerRecord]:
        return iter([*self._by_cookie.values()])

    def get(self, cookie: int) -> ListenerRecord | None:
        return self._by_cookie.get(cookie)

    def on_port(self, workload: int, port: int) -> list[ListenerRecord]:
        return [
            record
            for record in self._by_cookie.values()
            if record.workload == workload and record.port == port
        ]

    def add(self, record: ListenerRecord) -> None:
        self._by_cookie[record.cookie] = record
        self._store.put(key_of(KIND_LISTENER, record.cookie), _encoder.encode(record))

    def forget(self, cookie: int) -> None:
        self._by_cookie.pop(cookie, None)
        self._store.delete(key_of(KIND_LISTENER, cookie))


def read_listeners(store: SlotStore) -> Iterator[ListenerRecord]:
    """Every readable listener record of a store, also from another process."""
    for payload in _payloads(store, KIND_LISTENER):
        record = _decode(payload, ListenerRecord)
        if record is not None:
            yield record


_encoder = msgspec.msgpack.Encoder()


def _payloads(store: SlotStore, kind: int) -> Iterator[bytes]:
    prefix = key_of(kind, 0)[:8]
    for key, payload in store.items():
        if key[:8] == prefix:
            yield payload


def _decode(payload: bytes, kind: type[_R]) -> _R | None:
    try:
        return msgspec.msgpack.decode(payload, type=kind)
    except msgspec.DecodeError:
        # The writer replaced the slot while it was copied; the next look sees it whole.
        return None
