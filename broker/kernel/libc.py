"""The C library through ctypes: raw system calls, with errno turned into SyscallError.

`syscall` is for calls that glibc 2.36 does not wrap; system call numbers are those of
asm-generic (arm64, riscv64) and x86_64, which agree above 424 and are tabled below that.
"""

from __future__ import annotations

import ctypes
import errno
import os

from slim.broker.errors import SyscallError

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long

IS_X86_64 = os.uname().machine == "x86_64"

# From asm/unistd_64.h and asm-generic/unistd.h.
NR_pidfd_getfd = 438
NR_pidfd_open = 434
NR_process_vm_readv = 310 if IS_X86_64 else 270
NR_process_vm_writev = 311 if IS_X86_64 else 271
NR_seccomp = 317 if IS_X86_64 else 277

_HINTS = {
    errno.ENOSYS: "this kernel lacks the call, or a container's seccomp profile hides it",
    errno.EPERM: "a capability is missing, or a container's seccomp profile refuses the call",
}


def syscall_error(name: str, subject: str = "", code: int = 0) -> SyscallError:
    """The SyscallError for the errno that the last ctypes call left (or for `code`)."""
    code = code or ctypes.get_errno()
    hint = _HINTS.get(code, "")
    return SyscallError(name, code, ": ".join(part for part in (subject, hint) if part))


def syscall(name: str, number: int, *arguments: ctypes._SimpleCData[int] | int | None) -> int:
    """syscall(2): returns the result, raises SyscallError; `name` is for the message."""
    result: int = libc.syscall(ctypes.c_long(number), *arguments)
    if result < 0:
        raise syscall_error(name)
    return result
