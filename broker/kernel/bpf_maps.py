"""Elements of BPF maps by bpf(2), Linux 3.18: keys and values are bytes of a fixed size."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from typing import TYPE_CHECKING

from slim.broker.errors import SyscallError
from slim.broker.kernel.libc import IS_X86_64, libc

if TYPE_CHECKING:
    from collections.abc import Iterator

# From linux/bpf.h and asm/unistd_64.h.
BPF_MAP_LOOKUP_ELEM = 1
BPF_MAP_UPDATE_ELEM = 2
BPF_MAP_DELETE_ELEM = 3
BPF_MAP_GET_NEXT_KEY = 4
BPF_OBJ_GET_INFO_BY_FD = 15
NR_bpf = 321 if IS_X86_64 else 280

# union bpf_attr for elements: map_fd, padding, key, value, flags.
_ELEMENT = struct.Struct("=IIQQQ")
_INFO = struct.Struct("=IIQ")
# struct bpf_map_info: type, id, key_size, value_size, max_entries.
_MAP_INFO = struct.Struct("=5I")


class Map:
    """One map; owns its fd. Not for maps with a value per CPU, but for `read_per_cpu`."""

    def __init__(self, fd: int, *, key_size: int, value_size: int) -> None:
        self._fd = fd
        self._value_size = value_size
        self._key_size = key_size

    def set(self, key: bytes, value: bytes) -> None:
        """BPF_MAP_UPDATE_ELEM, Linux 3.18: add or replace; E2BIG or ENOSPC when full.

        For socket storage (Linux 5.2) the key is the socket's fd as a native int.
        """
        if len(key) != self._key_size or len(value) != self._value_size:
            raise ValueError(f"{len(key)} and {len(value)} bytes for {self._key_size}")
        code = self._element(BPF_MAP_UPDATE_ELEM, key, value)
        if code:
            raise SyscallError("bpf(BPF_MAP_UPDATE_ELEM)", code)

    def get(self, key: bytes) -> bytes | None:
        """BPF_MAP_LOOKUP_ELEM, Linux 3.18: None when there is no such element."""
        value = ctypes.create_string_buffer(self._value_size)
        code = self._element(BPF_MAP_LOOKUP_ELEM, key, value)
        if code == errno.ENOENT:
            return None
        if code:
            raise SyscallError("bpf(BPF_MAP_LOOKUP_ELEM)", code)
        return value.raw

    def read_per_cpu(self, key: bytes, cpus: int) -> tuple[int, ...]:
        """BPF_MAP_LOOKUP_ELEM, Linux 4.6: the 64-bit values of `cpus` possible CPUs."""
        buffer = ctypes.create_string_buffer(8 * cpus)
        code = self._element(BPF_MAP_LOOKUP_ELEM, key, buffer)
        if code:
            raise SyscallError("bpf(BPF_MAP_LOOKUP_ELEM)", code)
        return struct.unpack(f"={cpus}Q", buffer.raw)

    def discard(self, key: bytes) -> bool:
        """BPF_MAP_DELETE_ELEM, Linux 3.18: whether there was such an element."""
        code = self._element(BPF_MAP_DELETE_ELEM, key, None)
        if code not in (0, errno.ENOENT):
            raise SyscallError("bpf(BPF_MAP_DELETE_ELEM)", code)
        return code == 0

    def keys(self) -> Iterator[bytes]:
        """BPF_MAP_GET_NEXT_KEY, Linux 3.18: a map that changes meanwhile may be begun anew."""
        key: bytes | None = None
        following = ctypes.create_string_buffer(self._key_size)
        while True:
            code = self._element(BPF_MAP_GET_NEXT_KEY, key, following)
            if code == errno.ENOENT:
                return
            if code:
                raise SyscallError("bpf(BPF_MAP_GET_NEXT_KEY)", code)
            key = following.raw
            yield key

    def sizes(self) -> tuple[int, int]:
        """BPF_OBJ_GET_INFO_BY_FD, Linux 4.13: bytes of a key and of a value."""
        info = ctypes.create_string_buffer(_MAP_INFO.size)
        asked = _INFO.pack(self._fd, _MAP_INFO.size, ctypes.addressof(info))
        if libc.syscall(ctypes.c_long(NR_bpf), BPF_OBJ_GET_INFO_BY_FD, asked, len(asked)) < 0:
            raise SyscallError("bpf(BPF_OBJ_GET_INFO_BY_FD)", ctypes.get_errno())
        _, _, key_size, value_size, _ = _MAP_INFO.unpack(info.raw)
        return key_size, value_size

    def close(self) -> None:
        os.close(self._fd)

    def _element(
        self, command: int, key: bytes | None, value: bytes | ctypes.Array[ctypes.c_char] | None
    ) -> int:
        """0 or the errno. The buffers are kept alive by the locals here until the call is over."""
        key_buffer = None if key is None else ctypes.create_string_buffer(key, len(key))
        if isinstance(value, bytes):
            value = ctypes.create_string_buffer(value, len(value))
        attributes = _ELEMENT.pack(
            self._fd,
            0,
            0 if key_buffer is None else ctypes.addressof(key_buffer),
            0 if value is None else ctypes.addressof(value),
            0,
        )
        if libc.syscall(ctypes.c_long(NR_bpf), command, attributes, len(attributes)) < 0:
            return ctypes.get_errno()
        return 0
