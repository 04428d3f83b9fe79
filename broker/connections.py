"""Connections: one record per TCP connection that the broker made, admitted or left alone.

A record is keyed by SO_COOKIE, which follows the socket through dup, fork and SCM_RIGHTS, and is
kept in a memfd (slots.py), so that a restarted traps still knows every address, and control can
list connections without asking anyone. It is forgotten once sock_diag(7) no longer shows the
socket.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import msgspec

from slim.broker.endpoints import Endpoint, from_packed16, packed16
from slim.broker.shaping import Shaping, format_rate, smaller
from slim.broker.slots import SlotStore, key_of

if TYPE_CHECKING:
    from collections.abc import Iterator

SLOT_BYTES = 640
SLOTS = 65_536
MAX_TEXT = 80
KIND_CONNECTION = 1

PackedEndpoint = tuple[bytes, int]

_NOWHERE: PackedEndpoint = (bytes(16), 0)


class ConnectionRecord(msgspec.Struct, frozen=True, array_like=True):
    """What is remembered about one connection; the schema of the memfd."""

    cookie: int
    workload: int
    direction: Literal["out", "in"]
    local: PackedEndpoint
    """The overlay address and port that the program sees as its own."""
    peer: PackedEndpoint
    host_peer: PackedEndpoint
    """Where the wire goes; unspecified for a connection on the overlay."""
    peer_host: str
    path: Literal["fast", "fallback", "denied"]
    reason: str
    rule: str
    pid: int
    """The thread that called."""
    created: float
    """time.time()"""
    shaping: Shaping | None = None
    peer_rate: int | None = None
    """What the other end wants to receive at most, in bytes per second."""
    is_limited: bool = False
    """By either. The last field: who looks for limits only need not decode the others."""

    def limited_by(self, shaping: Shaping | None, peer_rate: int | None) -> ConnectionRecord:
        """The same connection with these limits."""
        is_limited = shaping is not None or peer_rate is not None
        return msgspec.structs.replace(
            self, shaping=shaping, peer_rate=peer_rate, is_limited=is_limited
        )

    def describe_limits(self) -> str:
        """For people: "send 200mbit, quota 5GiB, peer receives 8mbit"; empty without any."""
        texts = [self.shaping.describe()] if self.shaping is not None else []
        if self.peer_rate is not None:
            texts.append(f"peer receives {format_rate(self.peer_rate)}")
        return ", ".join(texts)

    @property
    def rate(self) -> int | None:
        """What this end may send, in bytes per second."""
        return smaller(self.shaping.send if self.shaping else None, self.peer_rate)

    def local_endpoint(self) -> Endpoint:
        return Endpoint(from_packed16(self.local[0]), self.local[1])

    def peer_endpoint(self) -> Endpoint:
        return Endpoint(from_packed16(self.peer[0]), self.peer[1])

    def host_endpoint(self) -> Endpoint | None:
        if self.host_peer == _NOWHERE:
            return None
        return Endpoint(from_packed16(self.host_peer[0]), self.host_peer[1])


def pack(endpoint: Endpoint | None) -> PackedEndpoint:
    """An endpoint as records keep it."""
    return (packed16(endpoint.address), endpoint.port) if endpoint else _NOWHERE


_UNLIMITED = b"\xc2"
"""The end of a record whose last field, `is_limited`, is false."""
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(ConnectionRecord)


class ConnectionTable:
    """The records of one host; written by traps only. Borrows the store."""

    def __init__(self, store: SlotStore) -> None:
        self._store = store
        self._fast: dict[int, ConnectionRecord] = {
            record.cookie: record for record in read_records(store) if record.path == "fast"
        }
        self._limited: dict[int, ConnectionRecord] = {
            record.cookie: record for record in read_limited(store)
        }
        self.overflowed = 0
        """Records that found no slot: those connections work, but a restart forgets them."""

    def __len__(self) -> int:
        return len(self._fast)

    def get(self, cookie: int) -> ConnectionRecord | None:
        """The record of a socket that the broker made; None for one of the program's own."""
        return self._fast.get(cookie)

    def add(self, record: ConnectionRecord) -> bytes:
        """Keep the record, or put it in the place of an older one; gives it as the memfd has it."""
        if record.path == "fast":
            self._fast[record.cookie] = record
        if record.is_limited:
            self._limited[record.cookie] = record
        else:
            self._limited.pop(record.cookie, None)
        payload = _encoder.encode(record)
        if not self._store.put(key_of(KIND_CONNECTION, record.cookie), payload):
            self.overflowed += 1
        return payload

    def limited(self, cookie: int) -> ConnectionRecord | None:
        """The record of a socket that policy limits, on whichever path."""
        return self._limited.get(cookie)

    def replace(self, record: ConnectionRecord) -> None:
        """Limits changed; a connection that was forgotten meanwhile stays so."""
        if key_of(KIND_CONNECTION, record.cookie) in self._store:
            self.add(record)

    def forget(self, cookie: int) -> None:
        self._fast.pop(cookie, None)
        self._limited.pop(cookie, None)
        self._store.delete(key_of(KIND_CONNECTION, cookie))

    def forget_workload(self, workload: int) -> None:
        for record in [*read_records(self._store)]:
            if record.workload == workload:
                self.forget(record.cookie)


def read_record(payload: bytes) -> ConnectionRecord:
    """One record as ConnectionTable.add gave it; msgspec.DecodeError when it is none."""
    return _decoder.decode(payload)


def read_records(store: SlotStore) -> Iterator[ConnectionRecord]:
    """Every readable record of a store, also from another process."""
    return _read(store, b"")


def read_limited(store: SlotStore) -> Iterator[ConnectionRecord]:
    """As read_records, those with a limit only: the others are not even decoded."""
    return _read(store, _UNLIMITED)


def read_payloads(store: SlotStore) -> Iterator[tuple[int, bytes]]:
    """Cookie and undecoded record of every connection: for who knows most of them already."""
    prefix = key_of(KIND_CONNECTION, 0)[:8]
    for key, payload in store.items():
        if key[:8] == prefix:
            yield int.from_bytes(key[8:], "little"), payload


def _read(store: SlotStore, left_out: bytes) -> Iterator[ConnectionRecord]:
    prefix = key_of(KIND_CONNECTION, 0)[:8]
    for key, payload in store.items():
        if key[:8] == prefix and not (left_out and payload.endswith(left_out)):
            try:
                yield _decoder.decode(payload)
            except msgspec.DecodeError:
                # The writer replaced the slot while it was copied; the next look sees it whole.
                continue
