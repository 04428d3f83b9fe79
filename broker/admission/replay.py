"""Replay windows: which nonces were seen, in shared memory that outlives the process.

One window of 65,536 counters per nonce prefix, at most 16 live prefixes per peer (a prefix is one
life of the peer's keeper, or 2^32 records). A prefix is forgotten only when every key it
can have used has expired, so a full table refuses new prefixes: it fails closed.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import struct

WINDOW = 65_536
PREFIXES_PER_PEER = 16

_SLOT_HEADER = struct.Struct("<8s8sQQ")
_SLOT_BYTES = _SLOT_HEADER.size + WINDOW // 8
_ZEROES = bytes(WINDOW // 8)
_COUNT = struct.Struct("<Q")
"""At the start: how many windows were ever used; what lies above has no memory yet."""
_FIRST = 64


class ReplayWindows:
    """All windows of a host; owns its memfd. `lifetime_s` is how long any record can be valid."""

    def __init__(self, fd: int, *, lifetime_s: float) -> None:
        self._fd = fd
        self._lifetime_s = lifetime_s
        self._map = mmap.mmap(fd, os.fstat(fd).st_size)
        self._slots: dict[tuple[bytes, bytes], int] = {}
        self._peers: dict[bytes, list[tuple[bytes, bytes]]] = {}
        self._free: list[int] = []
        self._capacity = (len(self._map) - _FIRST) // _SLOT_BYTES
        (self._used,) = _COUNT.unpack_from(self._map)
        for offset in self._offsets(self._used):
            peer, prefix, _, _ = _SLOT_HEADER.unpack_from(self._map, offset)
            if any(peer):
                self._slots[peer, prefix] = offset
                self._peers.setdefault(peer, []).append((peer, prefix))
            else:
                self._free.append(offset)

    @classmethod
    def create(cls, *, windows: int, lifetime_s: float) -> ReplayWindows:
        fd = os.memfd_create("slim-replay", os.MFD_CLOEXEC)
        os.ftruncate(fd, _FIRST + windows * _SLOT_BYTES)
        return cls(fd, lifetime_s=lifetime_s)

    def fileno(self) -> int:
        return self._fd

    def close(self) -> None:
        self._map.close()
        os.close(self._fd)

    def keep_for(self, lifetime_s: float) -> None:
        """Records may be valid for so long now; windows that were to be kept longer still are."""
        self._lifetime_s = max(self._lifetime_s, lifetime_s)

    def admit(self, peer: str, prefix: bytes, counter: int, now_s: float) -> bool:
        """Whether this nonce is new; from then on it is not. Call it only for opened records."""
        key = (_peer_id(peer), prefix)
        offset = self._slots.get(key)
        if offset is None:
            offset = self._take(key, now_s)
            if offset is None:
                return False
            highest = 0
        else:
            _, _, highest, _ = _SLOT_HEADER.unpack_from(self._map, offset)
        if counter + WINDOW <= highest:
            return False
        bitmap = offset + _SLOT_HEADER.size
        if counter > highest:
            self._clear(bitmap, highest + 1, counter)
            highest = counter
        position, bit = divmod(counter % WINDOW, 8)
        if self._map[bitmap + position] & (1 << bit):
            return False
        self._map[bitmap + position] |= 1 << bit
        _SLOT_HEADER.pack_into(self._map, offset, key[0], prefix, highest, int(now_s))
        return True

    def _clear(self, bitmap: int, first: int, last: int) -> None:
        if last - first >= WINDOW - 1:
            self._map[bitmap : bitmap + WINDOW // 8] = _ZEROES
            return
        for counter in range(first, last + 1):
            position, bit = divmod(counter % WINDOW, 8)
            self._map[bitmap + position] &= ~(1 << bit) & 0xFF

    def _take(self, key: tuple[bytes, bytes], now_s: float) -> int | None:
        of_peer = self._peers.setdefault(key[0], [])
        for old in [*of_peer]:
            _, _, _, used = _SLOT_HEADER.unpack_from(self._map, self._slots[old])
            # `used` lies ahead only if the clock restarted, that is, the machine did.
            if not used <= now_s <= used + self._lifetime_s:
                self._release(old)
        if len(of_peer) >= PREFIXES_PER_PEER:
            return None
        offset = self._find_room(now_s)
        if offset is None:
            return None
        bitmap = offset + _SLOT_HEADER.size
        self._map[bitmap : bitmap + WINDOW // 8] = _ZEROES
        self._slots[key] = offset
        of_peer.append(key)
        return offset

    def _offsets(self, count: int) -> range:
        return range(_FIRST, _FIRST + min(count, self._capacity) * _SLOT_BYTES, _SLOT_BYTES)

    def _find_room(self, now_s: float) -> int | None:
        if not self._free and self._used < self._capacity:
            self._used += 1
            _COUNT.pack_into(self._map, 0, self._used)
            return self._offsets(self._used)[-1]
        if not self._free:
            self._sweep(now_s)
        return self._free.pop() if self._free else None

    def _sweep(self, now_s: float) -> None:
        for key, offset in [*self._slots.items()]:
            _, _, _, used = _SLOT_HEADER.unpack_from(self._map, offset)
            if not used <= now_s <= used + self._lifetime_s:
                self._release(key)

    def _release(self, key: tuple[bytes, bytes]) -> None:
        offset = self._slots.pop(key)
        self._peers[key[0]].remove(key)
        _SLOT_HEADER.pack_into(self._map, offset, bytes(8), bytes(8), 0, 0)
        self._free.append(offset)


def _peer_id(peer: str) -> bytes:
    # Never all zeroes in practice: that marks a free slot.
    return hashlib.blake2b(peer.encode(), digest_size=8).digest()
