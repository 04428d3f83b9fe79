"""epoll(7) with 64 bits of user data, which `select.epoll` does not give.

Slim registers sockets whose fd it closes at once: the registration lives as long as the file
does in the program, and costs the program nothing. The fd number then names nothing any more,
so events must carry a token of their own.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct

from slim.broker.kernel.libc import IS_X86_64, libc, syscall_error

# From sys/epoll.h.
EPOLLIN = 0x001
EPOLLOUT = 0x004
EPOLLERR = 0x008
EPOLLHUP = 0x010
EPOLLRDHUP = 0x2000
EPOLLONESHOT = 1 << 30
EPOLLET = 1 << 31
EPOLL_CTL_ADD = 1
EPOLL_CTL_DEL = 2
EPOLL_CTL_MOD = 3


class epoll_event(ctypes.Structure):
    # The kernel's struct is packed on x86_64 only (EPOLL_PACKED in eventpoll.h).
    if IS_X86_64:
        _pack_ = 1
    _fields_ = [("events", ctypes.c_uint32), ("data", ctypes.c_uint64)]


_EVENT = struct.Struct("=IQ" if IS_X86_64 else "@IQ")
_epoll_ctl = libc.epoll_ctl
_epoll_ctl.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.POINTER(epoll_event)]
_epoll_wait = libc.epoll_wait
_epoll_wait.argtypes = [ctypes.c_int, ctypes.POINTER(epoll_event), ctypes.c_int, ctypes.c_int]
_epoll_create1 = libc.epoll_create1


class Epoll:
    """An epoll set; owns its fd."""

    def __init__(self, max_events: int = 64) -> None:
        fd = _epoll_create1(os.O_CLOEXEC)
        if fd < 0:
            raise syscall_error("epoll_create1")
        self._fd: int = fd
        self._events = (epoll_event * max_events)()
        self._bytes = memoryview(self._events).cast("B")
        self._max_events = max_events

    def fileno(self) -> int:
        return self._fd

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def add(self, fd: int, events: int, token: int) -> None:
        """EPOLL_CTL_ADD of epoll_ctl(2); borrows the fd."""
        self._control(EPOLL_CTL_ADD, fd, events, token)

    def modify(self, fd: int, events: int, token: int) -> None:
        """EPOLL_CTL_MOD of epoll_ctl(2); borrows the fd."""
        self._control(EPOLL_CTL_MOD, fd, events, token)

    def remove(self, fd: int) -> None:
        """EPOLL_CTL_DEL of epoll_ctl(2); a file that is not there is no error."""
        if _epoll_ctl(self._fd, EPOLL_CTL_DEL, fd, None) < 0 and ctypes.get_errno() not in (
            errno.ENOENT,
            errno.EBADF,
        ):
            raise syscall_error("epoll_ctl", "DEL")

    def wait(self, timeout_ms: int) -> list[tuple[int, int]]:
        """epoll_wait(2): (token, events) of what is ready; empty on time-out or a signal."""
        count = _epoll_wait(self._fd, self._events, self._max_events, timeout_ms)
        if count < 0:
            if ctypes.get_errno() == errno.EINTR:
                return []
            raise syscall_error("epoll_wait")
        # struct makes no object of the struct and each of its fields, as ctypes does.
        found = _EVENT.iter_unpack(self._bytes[: count * _EVENT.size])
        return [(token, events) for events, token in found]

    def _control(self, operation: int, fd: int, events: int, token: int) -> None:
        event = epoll_event(events, token)
        if _epoll_ctl(self._fd, operation, fd, ctypes.byref(event)) < 0:
            raise syscall_error("epoll_ctl", f"fd {fd}")


def create(flags: int) -> int:
    """epoll_create1(2), Linux 2.6.27: the bare fd, owned by the caller."""
    fd: int = _epoll_create1(flags)
    if fd < 0:
        raise syscall_error("epoll_create1")
    return fd
