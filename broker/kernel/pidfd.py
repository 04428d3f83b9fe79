"""Threads as file descriptors, and the fds of other processes.

A notification names a *thread*; threads may have private fd tables (clone without CLONE_FILES),
so the pidfd is opened for the thread where the kernel can (PIDFD_THREAD, Linux 6.9).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import select
from collections import OrderedDict

from slim.broker.errors import SyscallError
from slim.broker.kernel.libc import NR_pidfd_getfd, libc, syscall_error

PIDFD_THREAD = os.O_EXCL

_syscall = libc.syscall
_getfd = ctypes.c_long(NR_pidfd_getfd)


def pidfd_open(pid: int, *, thread: bool = False) -> int:
    """pidfd_open(2), Linux 5.3; of one thread with PIDFD_THREAD, Linux 6.9. Caller owns the fd."""
    try:
        return os.pidfd_open(pid, PIDFD_THREAD if thread else 0)
    except OSError as error:
        raise syscall_error("pidfd_open", f"pid {pid}", error.errno or 0) from None


class ThreadPidfds:
    """pidfds of the threads that called lately, least used closed first; owns them.

    Only with PIDFD_THREAD: such a pidfd is of one thread for ever, and says ESRCH when that is
    dead and its number another's.
    """

    def __init__(self, limit: int = 64) -> None:
        self._limit = limit
        self._pidfds: OrderedDict[int, int] = OrderedDict()
        self._is_supported = True

    def getfd(self, tid: int, fd: int) -> int:
        """A duplicate of that fd of that thread, which the caller owns; OSError as pidfd_getfd."""
        pidfd = self._pidfds.get(tid)
        if pidfd is not None:
            try:
                duplicate = pidfd_getfd(pidfd, fd)
            except SyscallError as error:
                if error.errno != errno.ESRCH:
                    raise
                del self._pidfds[tid]
                os.close(pidfd)
            else:
                self._pidfds.move_to_end(tid)
                return duplicate
        return self._getfd_anew(tid, fd)

    def close(self) -> None:
        while self._pidfds:
            os.close(self._pidfds.popitem()[1])

    def close_dead(self) -> None:
        """Close the pidfds of threads that have ended: they are readable (pidfd_open(2))."""
        look = select.poll()
        by_pidfd = {pidfd: tid for tid, pidfd in self._pidfds.items()}
        for pidfd in by_pidfd:
            look.register(pidfd, select.POLLIN)
        for pidfd, _ in look.poll(0):
            del self._pidfds[by_pidfd[pidfd]]
            os.close(pidfd)

    def _getfd_anew(self, tid: int, fd: int) -> int:
        pidfd = -1
        if self._is_supported:
            try:
                pidfd = pidfd_open(tid, thread=True)
            except SyscallError as error:
                if error.errno != errno.EINVAL:
                    raise
                self._is_supported = False
        if pidfd >= 0:
            self._pidfds[tid] = pidfd
            if len(self._pidfds) > self._limit:
                os.close(self._pidfds.popitem(last=False)[1])
            return pidfd_getfd(pidfd, fd)
        pidfd = pidfd_open(thread_group(tid))
        try:
            return pidfd_getfd(pidfd, fd)
        finally:
            os.close(pidfd)


def pidfd_open_thread(tid: int) -> int:
    """pidfd_open(2), Linux 6.9; before that of the thread's group leader. Caller owns the fd."""
    try:
        return pidfd_open(tid, thread=True)
    except SyscallError as error:
        if error.errno != errno.EINVAL:
            raise
    return pidfd_open(thread_group(tid))


def pidfd_getfd(pidfd: int, fd: int) -> int:
    """pidfd_getfd(2), Linux 5.6: a duplicate of another process's fd, which the caller owns."""
    duplicate: int = _syscall(_getfd, pidfd, fd, 0)
    if duplicate < 0:
        raise syscall_error("pidfd_getfd", f"fd {fd}")
    return duplicate


def thread_group(tid: int) -> int:
    """The process that the thread belongs to (Tgid of proc_pid_status(5)); SyscallError ESRCH."""
    try:
        with open(f"/proc/{tid}/status", "rb") as status:
            for line in status:
                if line.startswith(b"Tgid:"):
                    return int(line[5:])
    except OSError:
        pass
    raise SyscallError("/proc/pid/status", errno.ESRCH, f"thread {tid}")


def is_close_on_exec(tid: int, fd: int) -> bool:
    """Whether that fd of that thread closes at exec (flags of proc_pid_fdinfo(5))."""
    text = read_fdinfo(tid, fd, 256)
    start = text.index(b"flags:") + 6
    return bool(int(text[start : text.index(b"\n", start)], 8) & os.O_CLOEXEC)


def read_fdinfo(tid: int, fd: int, limit: int) -> bytes:
    """At most `limit` bytes of proc_pid_fdinfo(5), Linux 2.6.22; OSError when the fd is gone."""
    # Bare system calls: a file object costs three times as much, and this is in the trap path.
    fdinfo = os.open(f"/proc/{tid}/fdinfo/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fdinfo, limit)
    finally:
        os.close(fdinfo)


def command_name(pid: int) -> str:
    """The thread's name (proc_pid_comm(5)); empty when it is gone."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/comm", errors="replace") as comm:
        return comm.read(64).rstrip("\n")
    return ""
