"""What traps says of new connections: a ring in a memfd, which control reads when it likes.

Traps, the only writer, never waits and never asks who reads: it writes over the oldest. A reader
knows by the numbers what it missed. Each slot has its entry's number, written last and cleared
first, so that a writer that dies half-way, or overtakes the reader, leaves nothing that is taken
for an entry.
"""

from __future__ import annotations

import mmap
import os
import struct
from dataclasses import dataclass

_HEADER = struct.Struct("<4sIIxxxxQQ")
_COUNT = struct.Struct("<Q")
_COUNT_OFFSET = 16
_SEEN_OFFSET = 24
_HEADER_BYTES = 64
_MAGIC = b"slr1"
_ENTRY = struct.Struct("<QII")
"""Number (from 1), microseconds, length of the payload."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One piece of news."""

    took_us: int
    payload: bytes


class NewsRing:
    """Owns its memfd; one process writes, one other reads."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        size = os.fstat(fd).st_size
        self._map = mmap.mmap(fd, size)
        magic, slot_bytes, slots, count, _ = _HEADER.unpack_from(self._map)
        if magic != _MAGIC or size != _HEADER_BYTES + slot_bytes * slots or not slots:
            raise ValueError("not a news ring of this version")
        self._slot_bytes: int = slot_bytes
        self._slots: int = slots
        self._written: int = count

    @classmethod
    def create(cls, name: str, *, slot_bytes: int, slots: int) -> NewsRing:
        """A new, empty ring; its pages take memory only once they are written."""
        fd = os.memfd_create(name, os.MFD_CLOEXEC)
        os.ftruncate(fd, _HEADER_BYTES + slot_bytes * slots)
        os.pwrite(fd, _HEADER.pack(_MAGIC, slot_bytes, slots, 0, 0), 0)
        return cls(fd)

    def fileno(self) -> int:
        return self._fd

    def close(self) -> None:
        self._map.close()
        os.close(self._fd)

    @property
    def written(self) -> int:
        """How many entries there ever were."""
        count: int = _COUNT.unpack_from(self._map, _COUNT_OFFSET)[0]
        return count

    @property
    def seen(self) -> int:
        """The number that the reader reached; kept for its successor."""
        count: int = _COUNT.unpack_from(self._map, _SEEN_OFFSET)[0]
        return count

    @seen.setter
    def seen(self, number: int) -> None:
        _COUNT.pack_into(self._map, _SEEN_OFFSET, number)

    def write(self, took_us: int, payload: bytes) -> None:
        """Add an entry; one that does not fit counts as lost."""
        number = self._written + 1
        start = self._start(number)
        _COUNT.pack_into(self._map, start, 0)
        if _ENTRY.size + len(payload) <= self._slot_bytes:
            took_us = max(0, min(took_us, 0xFFFFFFFF))
            _ENTRY.pack_into(self._map, start, 0, took_us, len(payload))
            body = start + _ENTRY.size
            self._map[body : body + len(payload)] = payload
            _COUNT.pack_into(self._map, start, number)
        self._written = number
        _COUNT.pack_into(self._map, _COUNT_OFFSET, number)

    def read(self, limit: int) -> tuple[list[Entry], int]:
        """Up to `limit` entries that nobody has read, and how many were lost before or among them.

        They are seen from now on.
        """
        written, after = self.written, min(self.seen, self.written)
        first = max(after + 1, written - self._slots + 1)
        last = min(written, first + limit - 1)
        found = [
            entry for number in range(first, last + 1) if (entry := self._read(number)) is not None
        ]
        self.seen = last
        return found, last - after - len(found)

    def _read(self, number: int) -> Entry | None:
        start = self._start(number)
        there, took_us, length = _ENTRY.unpack_from(self._map, start)
        if there != number or length > self._slot_bytes - _ENTRY.size:
            return None
        payload = self._map[start + _ENTRY.size : start + _ENTRY.size + length]
        # The writer may have come round while we copied.
        if _COUNT.unpack_from(self._map, start)[0] != number:
            return None
        return Entry(took_us, payload)

    def _start(self, number: int) -> int:
        return _HEADER_BYTES + (number - 1) % self._slots * self._slot_bytes
