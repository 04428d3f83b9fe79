"""Small records in a memfd: what must outlive the process that wrote it.

A memfd is held by the keeper and mapped by traps (the only writer) and control (a reader). Each
slot holds one record with its key. The length is written last and cleared first, so a writer
that dies half-way leaves an empty slot, never half a record. Slots above the high-water mark in
the header were never used and are never read: reading would give them memory.
"""

from __future__ import annotations

import mmap
import os
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_HEADER = struct.Struct("<4sIII")
_HIGH_WATER = struct.Struct("<I")
_HIGH_WATER_OFFSET = 12
_MAGIC = b"slt1"
_LENGTH = struct.Struct("<I")
_KEY_BYTES = 16
_SLOT_HEADER = _LENGTH.size + _KEY_BYTES


class SlotStore:
    """Records of up to `slot_bytes` minus 20 bytes under 16-byte keys; owns its memfd."""

    def __init__(self, fd: int, *, writable: bool) -> None:
        self._fd = fd
        size = os.fstat(fd).st_size
        self._map = mmap.mmap(fd, size, access=mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ)
        magic, slot_bytes, slots, _ = _HEADER.unpack_from(self._map)
        if magic != _MAGIC or slot_bytes < 64 or size != slot_bytes * (slots + 1):
            raise ValueError("not a slot store of this version")
        self.slot_bytes: int = slot_bytes
        self.slots: int = slots
        self._index: dict[bytes, int] = {}
        self._free: list[int] = []
        self._next = 1
        if writable:
            self._rebuild()

    @classmethod
    def create(cls, name: str, *, slot_bytes: int, slots: int) -> SlotStore:
        """A new, empty store; its pages take memory only once they are written."""
        fd = os.memfd_create(name, os.MFD_CLOEXEC)
        os.ftruncate(fd, slot_bytes * (slots + 1))
        os.pwrite(fd, _HEADER.pack(_MAGIC, slot_bytes, slots, 0), 0)
        return cls(fd, writable=True)

    def fileno(self) -> int:
        return self._fd

    def close(self) -> None:
        self._map.close()
        os.close(self._fd)

    def __len__(self) -> int:
        return len(self._index)

    def __contains__(self, key: bytes) -> bool:
        return key in self._index

    def put(self, key: bytes, payload: bytes) -> bool:
        """Write or overwrite; False when the store is full or the payload does not fit."""
        if len(payload) > self.slot_bytes - _SLOT_HEADER or len(key) != _KEY_BYTES:
            return False
        slot = self._index.get(key)
        if slot is None:
            if self._free:
                slot = self._free.pop()
            elif self._next <= self.slots:
                slot = self._next
                self._next += 1
                _HIGH_WATER.pack_into(self._map, _HIGH_WATER_OFFSET, slot)
            else:
                return False
        start = slot * self.slot_bytes
        self._map[start : start + 4] = b"\0\0\0\0"
        body = start + _LENGTH.size
        self._map[body : body + _KEY_BYTES + len(payload)] = key + payload
        _LENGTH.pack_into(self._map, start, len(payload) + _KEY_BYTES)
        self._index[key] = slot
        return True

    def delete(self, key: bytes) -> None:
        slot = self._index.pop(key, None)
        if slot is not None:
            start = slot * self.slot_bytes
            self._map[start : start + 4] = b"\0\0\0\0"
            self._free.append(slot)

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """Every record, in no order. A reader beside the writer may miss or repeat one."""
        for slot in range(1, self._high_water() + 1):
            record = self._read(slot)
            if record is not None:
                yield record

    def _read(self, slot: int) -> tuple[bytes, bytes] | None:
        start = slot * self.slot_bytes
        (length,) = _LENGTH.unpack_from(self._map, start)
        if not _KEY_BYTES <= length <= self.slot_bytes - _LENGTH.size:
            return None
        body = self._map[start + _LENGTH.size : start + _LENGTH.size + length]
        return body[:_KEY_BYTES], body[_KEY_BYTES:]

    def _high_water(self) -> int:
        used: int = _HIGH_WATER.unpack_from(self._map, _HIGH_WATER_OFFSET)[0]
        return min(used, self.slots)

    def _rebuild(self) -> None:
        for slot in range(1, self._high_water() + 1):
            record = self._read(slot)
            if record is not None:
                self._index[record[0]] = slot
            else:
                self._free.append(slot)
        self._next = self._high_water() + 1


def key_of(kind: int, number: int) -> bytes:
    """The key of a record that is named by a number: a cookie, a flow id."""
    return struct.pack("<QQ", kind, number)
