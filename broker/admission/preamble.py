"""The preamble: one sealed record of 80 bytes, the first on every host connection.

    offset  bytes  field
         0      4  magic "SLIM"
         4      1  version
         5      3  zero
         8      4  key id, big-endian
        12     12  nonce (nonces.py): 8 bytes of prefix, 4 of counter, big-endian
        24     40  sealed: flow (4), kind (1), zero (1), source port (2), source address (16), zero
        64     16  tag

AES-256-GCM (by the encryption plugin), with the first 24 bytes and the host listener's address
and port as associated data: a record is worth nothing at any other listener.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

from slim.broker.endpoints import Endpoint, from_packed16, packed16

if TYPE_CHECKING:
    from slim.broker.admission.nonces import Nonces

RECORD_BYTES = 80
KEY_BYTES = 32
MAGIC = b"SLIM"
VERSION = 1

_HEADER = struct.Struct("!4sB3xI8sI")
_BODY = struct.Struct("!IBxH16s16x")
_DESTINATION = struct.Struct("!16sH")

Seal = Callable[[bytes, bytes, bytes, bytes], bytes]
"""seal(key, nonce, plaintext, associated) -> ciphertext and tag"""
Open = Callable[[bytes, bytes, bytes, bytes], bytes]
"""open(key, nonce, sealed, associated) -> plaintext; ValueError on any mismatch"""


class Kind(IntEnum):
    DATA = 1
    """The connection of a program, delivered to the accepting program."""
    WAKE = 2
    """slimd's own: something else is ready to be accepted."""


class RecordRefused(Exception):
    """The record admits nobody; the text is the reason that counters and logs show."""


@dataclass(frozen=True, slots=True)
class Record:
    flow: int
    kind: Kind
    source: Endpoint


@dataclass(frozen=True, slots=True)
class Header:
    key_id: int
    prefix: bytes
    counter: int
    raw: bytes


class Sealer:
    """Seals records with one key; borrows the nonces, which all keys and peers share."""

    def __init__(self, key_id: int, key: bytes, seal: Seal, nonces: Nonces) -> None:
        self.key_id = key_id
        self._key = key
        self._seal = seal
        self._nonces = nonces

    def seal(self, record: Record, destination: Endpoint) -> bytes:
        """80 bytes for the host listener at `destination`."""
        counter = self._nonces.take()
        header = _HEADER.pack(MAGIC, VERSION, self.key_id, self._nonces.prefix, counter)
        body = _BODY.pack(
            record.flow, record.kind, record.source.port, packed16(record.source.address)
        )
        return header + self._seal(self._key, header[12:], body, header + _bind(destination))


def parse_header(raw: bytes) -> Header:
    """Read the open part of a record; RecordRefused when it is none."""
    if len(raw) != RECORD_BYTES:
        raise RecordRefused("truncated")
    magic, version, key_id, prefix, counter = _HEADER.unpack_from(raw)
    if magic != MAGIC:
        raise RecordRefused("not-a-record")
    if version != VERSION:
        raise RecordRefused("version")
    return Header(key_id, prefix, counter, raw[: _HEADER.size])


def open_record(
    raw: bytes, header: Header, key: bytes, destination: Endpoint, open_sealed: Open
) -> Record:
    """Open a record that came to the listener at `destination`; RecordRefused if it is false."""
    try:
        body = open_sealed(
            key, header.raw[12:], raw[_HEADER.size :], header.raw + _bind(destination)
        )
        flow, kind, port, address = _BODY.unpack(body)
        return Record(flow, Kind(kind), Endpoint(from_packed16(address), port))
    except (ValueError, struct.error):
        raise RecordRefused("forged") from None


def _bind(destination: Endpoint) -> bytes:
    return _DESTINATION.pack(packed16(destination.address), destination.port)
