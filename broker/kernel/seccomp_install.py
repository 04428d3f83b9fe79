"""Installing a seccomp filter with a listener (seccomp(2), seccomp_unotify(2)); used by slim-run.

The counterpart is seccomp_filter, which builds the program in slimd. From the moment of the
installation every trapped call of this process waits for whoever holds the listener.
"""

from __future__ import annotations

import ctypes

from slim.broker.kernel.libc import NR_seccomp, libc, syscall, syscall_error

# From linux/seccomp.h and linux/prctl.h.
PR_SET_NO_NEW_PRIVS = 38
SECCOMP_FILTER_FLAG_NEW_LISTENER = 1 << 3
SECCOMP_FILTER_FLAG_SPEC_ALLOW = 1 << 2
SECCOMP_SET_MODE_FILTER = 1

SIZEOF_SOCK_FILTER = 8
MAX_INSTRUCTIONS = 4096
"""BPF_MAXINSNS of linux/bpf_common.h."""


class sock_fprog(ctypes.Structure):
    _fields_ = [("len", ctypes.c_ushort), ("filter", ctypes.c_char_p)]


def install_filter(program: bytes) -> int:
    """SECCOMP_FILTER_FLAG_NEW_LISTENER of seccomp(2), Linux 5.0: filter the calling process.

    `program` is an array of struct sock_filter. Gives the listener (O_CLOEXEC), which the caller
    owns. SyscallError EACCES: neither CAP_SYS_ADMIN nor no_new_privs; EBUSY: a filter of this
    process has a listener already, and the kernel allows one.
    """
    if len(program) % SIZEOF_SOCK_FILTER or not 0 < len(program) <= 8 * MAX_INSTRUCTIONS:
        raise ValueError(f"{len(program)} bytes are not a seccomp filter")
    # Before Linux 5.16 a filter turned speculative store bypass off for the program, which made
    # it slower and is no business of ours: this filter does not sandbox.
    flags = SECCOMP_FILTER_FLAG_NEW_LISTENER | SECCOMP_FILTER_FLAG_SPEC_ALLOW
    fprog = sock_fprog(len(program) // SIZEOF_SOCK_FILTER, program)
    return syscall(
        "seccomp(SET_MODE_FILTER)",
        NR_seccomp,
        ctypes.c_uint(SECCOMP_SET_MODE_FILTER),
        ctypes.c_uint(flags),
        ctypes.c_ulong(ctypes.addressof(fprog)),
    )


def set_no_new_privs() -> None:
    """PR_SET_NO_NEW_PRIVS of prctl(2), Linux 3.5: execve gives no more privileges, for good."""
    one, zero = ctypes.c_ulong(1), ctypes.c_ulong(0)
    if libc.prctl(PR_SET_NO_NEW_PRIVS, one, zero, zero, zero) < 0:
        raise syscall_error("prctl(PR_SET_NO_NEW_PRIVS)")
