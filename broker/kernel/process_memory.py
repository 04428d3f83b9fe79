"""The memory of a target thread, copied in bounded pieces.

What is read may change under us at any time: it is copied once, and the notification is checked
for validity afterwards (pid reuse). Writes go only to the out-buffers of the trapped call.
"""

from __future__ import annotations

import ctypes
import errno
import threading

from slim.broker.kernel.libc import libc, syscall_error


class iovec(ctypes.Structure):
    _fields_ = [("iov_base", ctypes.c_void_p), ("iov_len", ctypes.c_size_t)]


MAX_READ = 4096

_readv = libc.process_vm_readv
_writev = libc.process_vm_writev
for _function in (_readv, _writev):
    _function.restype = ctypes.c_ssize_t
    _function.argtypes = [
        ctypes.c_int,
        ctypes.POINTER(iovec),
        ctypes.c_ulong,
        ctypes.POINTER(iovec),
        ctypes.c_ulong,
        ctypes.c_ulong,
    ]


class _Reader(threading.local):
    """Buffers that each thread makes once: making them costs three times the system call."""

    def __init__(self) -> None:
        self.buffer = ctypes.create_string_buffer(MAX_READ)
        self.local = iovec(ctypes.addressof(self.buffer), 0)
        self.remote = iovec(0, 0)
        self.local_pointer = ctypes.pointer(self.local)
        self.remote_pointer = ctypes.pointer(self.remote)


_reader = _Reader()


def process_vm_readv(tid: int, address: int, length: int) -> bytes:
    """process_vm_readv(2), Linux 3.2: exactly `length` bytes, or SyscallError EFAULT.

    At most MAX_READ bytes.
    """
    reader = _reader
    remote = reader.remote
    remote.iov_base = address
    reader.local.iov_len = remote.iov_len = length
    count = _readv(tid, reader.local_pointer, 1, reader.remote_pointer, 1, 0)
    if count < 0:
        raise syscall_error("process_vm_readv", f"{length} bytes")
    if count != length:
        raise syscall_error("process_vm_readv", f"{length} bytes", errno.EFAULT)
    return ctypes.string_at(reader.buffer, length)


def process_vm_writev(tid: int, parts: list[tuple[int, bytes]]) -> None:
    """process_vm_writev(2), Linux 3.2: all (address, bytes) pairs, or SyscallError EFAULT."""
    parts = [part for part in parts if part[1]]
    data = b"".join(part[1] for part in parts)
    buffer = ctypes.create_string_buffer(data, len(data))
    local = iovec(ctypes.addressof(buffer), len(data))
    remote = (iovec * len(parts))(*[iovec(address, len(part)) for address, part in parts])
    count = _writev(tid, ctypes.byref(local), 1, remote, len(parts), 0)
    if count < 0:
        raise syscall_error("process_vm_writev", f"{len(data)} bytes")
    if count != len(data):
        raise syscall_error("process_vm_writev", f"{len(data)} bytes", errno.EFAULT)
