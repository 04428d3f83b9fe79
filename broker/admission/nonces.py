"""The nonces of a host's records: 8 random bytes and a counter, in a memfd that outlives traps.

The successor counts on where its predecessor was killed: peers keep a bounded number of windows
(replay.py), one for each prefix. The counter is written before its value is used, so that no nonce
is ever used twice.
"""

from __future__ import annotations

import mmap
import os
import secrets

PREFIX_BYTES = 8
_SIZE = 16
_LIMIT = 1 << 32


class Nonces:
    """One sequence for all keys and peers of a host. Owns its memfd."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._map = mmap.mmap(fd, _SIZE)
        # One store of four bytes: whoever is killed leaves the value before or after.
        self._counter = memoryview(self._map)[PREFIX_BYTES : PREFIX_BYTES + 4].cast("I")
        self.prefix = bytes(self._map[:PREFIX_BYTES])

    @classmethod
    def create(cls) -> Nonces:
        fd = os.memfd_create("slim-nonces", os.MFD_CLOEXEC)
        os.ftruncate(fd, _SIZE)
        os.pwrite(fd, secrets.token_bytes(PREFIX_BYTES), 0)
        return cls(fd)

    def fileno(self) -> int:
        return self._fd

    def close(self) -> None:
        self._counter.release()
        self._map.close()
        os.close(self._fd)

    def take(self) -> int:
        """The next counter; it goes with `prefix`, read after this."""
        counter = self._counter[0] + 1
        if counter >= _LIMIT:
            # Killed between these two, whoever comes next finds the counter used up again.
            self.prefix = secrets.token_bytes(PREFIX_BYTES)
            self._map[:PREFIX_BYTES] = self.prefix
            counter = 1
        self._counter[0] = counter
        return counter
