"""ptrace(2), as far as it takes to make a thread issue its system call again.

PTRACE_SEIZE does not stop the thread, PTRACE_INTERRUPT does: an interruptible wait ends with
ERESTARTSYS, and once detached the thread is back at its system call as if nothing had been. No
signal is sent and no handler runs. All calls must come from the thread that seized.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import signal
import time

from slim.broker.errors import SyscallError
from slim.broker.kernel.libc import libc, syscall_error

# From linux/ptrace.h and linux/wait.h.
PTRACE_DETACH = 17
PTRACE_EVENT_STOP = 128
PTRACE_INTERRUPT = 0x4207
PTRACE_SEIZE = 0x4206
WALL = 0x40000000

STOP_LIMIT_S = 0.2
POLL_S = 0.0005

_ptrace = libc.ptrace
_ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_ptrace.restype = ctypes.c_long


def ptrace(request: int, tid: int, data: int = 0) -> None:
    """ptrace(2), PTRACE_SEIZE since Linux 3.4; the requests here return nothing."""
    if _ptrace(request, tid, None, data) < 0:
        raise syscall_error("ptrace", f"thread {tid}")


def restart_call(tid: int) -> None:
    """Make a thread leave the interruptible wait that it is in, and issue its call again.

    SyscallError ESRCH when it is gone, EPERM when somebody else traces it, ETIMEDOUT when it does
    not stop: then it is in no such wait.
    """
    ptrace(PTRACE_SEIZE, tid)
    delivered = 0
    try:
        ptrace(PTRACE_INTERRUPT, tid)
        status = _wait_for_stop(tid)
        if os.WIFSTOPPED(status) and status >> 16 != PTRACE_EVENT_STOP:
            # A signal came first: the thread gets it when it goes on.
            delivered = os.WSTOPSIG(status)
            if delivered == signal.SIGTRAP:
                delivered = 0
    finally:
        with contextlib.suppress(SyscallError):
            ptrace(PTRACE_DETACH, tid, delivered)


def _wait_for_stop(tid: int) -> int:
    """The tracee's status, as waitpid(2) gives it."""
    deadline = time.monotonic() + STOP_LIMIT_S
    while True:
        try:
            pid, status = os.waitpid(tid, os.WNOHANG | WALL)
        except ChildProcessError:
            raise SyscallError("waitpid", errno.ESRCH, f"thread {tid}") from None
        if pid:
            return status
        if time.monotonic() > deadline:
            raise SyscallError("waitpid", errno.ETIMEDOUT, f"thread {tid} does not stop")
        time.sleep(POLL_S)
