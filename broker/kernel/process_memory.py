"""The memory of a target thread, copied in bounded pieces.

What is read may change under us at any time: it is copied once, and the notification is checked
for validity afterwards (pid reuse). Writes go only to the out-buffers of the trapped call.
"""

from __future__ import annotations

import ctypes
import errno

from slim.broker.kernel.libc import libc, syscall_error


class iovec(ctypes.Structure):
    _fields_ = [("iov_base", ctypes.c_void_p), ("iov_len", ctypes.c_size_t)]


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


def process_vm_readv(tid: int, address: int, length: int) -> bytes:
    """process_vm_readv(2), Linux 3.2: exactly `length` bytes, or SyscallError EFAULT."""
    buffer = ctypes.create_string_buffer(length)
    local = iovec(ctypes.addressof(buffer), length)
    remote = iovec(address, length)
    count = _readv(tid, ctypes.byref(local), 1, ctypes.byref(remote), 1, 0)
    if count < 0:
        raise syscall_error("process_vm_readv", f"{length} bytes")
    if count != length:
        raise syscall_error("process_vm_readv", f"{length} bytes", errno.EFAULT)
    return buffer.raw


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
