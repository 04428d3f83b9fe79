"""Moves epoll registrations from a socket to the one that replaces it behind the same fd number.

An epoll item is keyed by (file, fd number), so a program's registration is neither kept nor moved
by a swap: it vanishes with the old file, and the program waits for ever. What it asked for stands
in fdinfo (proc_pid_fdinfo(5)) of the epoll fd. To register the new file under the program's own
number, a thread with an fd table of its own (unshare(CLONE_FILES)) puts both there at that number.
"""

from __future__ import annotations

import ctypes
import errno
import os
import queue
import resource
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from slim.broker.errors import SyscallError
from slim.broker.kernel.epoll import EPOLL_CTL_ADD, EPOLL_CTL_DEL, epoll_event
from slim.broker.kernel.libc import libc
from slim.broker.kernel.namespaces import unshare
from slim.broker.kernel.pidfd import pidfd_getfd, pidfd_open_thread, read_fdinfo

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

CLONE_FILES = 0x400
_SMALL_SET_BYTES = 4096
"""About fifty items."""

_epoll_ctl = libc.epoll_ctl


@dataclass(frozen=True, slots=True)
class Registration:
    """One item of an epoll set: what the program asked for."""

    epoll_fd: int
    """The set's number in the program."""
    events: int
    data: int


class RegistrationMover:
    """One helper thread with a private fd table; calls are short and run one at a time.

    The thread's table is emptied at once: as a copy of the process's it would keep every file of
    the process alive. So the thread opens what it needs by thread id and number.
    """

    def __init__(self) -> None:
        self._work: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        threading.Thread(target=self._run, daemon=True, name="epoll-mover").start()

    def find(self, tid: int, fd: int, candidates: Iterable[int]) -> list[Registration]:
        """Registrations of the thread's `fd` in those of its fds that are epoll sets.

        The fdinfo of a small set is read at once. A large one is first asked, by EPOLL_CTL_ADD in
        the helper thread, whether it holds the fd at all: EEXIST. So the cost does not grow with
        the number of fds in the set.
        """
        found: list[Registration] = []
        large = []
        for number in candidates:
            if number == fd:
                continue
            try:
                text = read_fdinfo(tid, number, _SMALL_SET_BYTES)
            except OSError:
                # Closed since.
                continue
            if len(text) < _SMALL_SET_BYTES:
                found.extend(_parse(text, number, fd))
            else:
                large.append(number)
        if large:
            self._call(lambda: _find(tid, fd, large, found))
        return found

    def add(self, tid: int, fd: int, registrations: list[Registration]) -> None:
        """Register the file that is now behind the thread's `fd` as the old one was; OSError."""
        self._call(lambda: _add(tid, fd, registrations))

    def _call(self, function: Callable[[], None]) -> None:
        job = _Job(function)
        self._work.put(job)
        job.done.acquire()
        if job.error is not None:
            raise job.error

    def _run(self) -> None:
        unshare(CLONE_FILES)
        os.closerange(0, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
        while True:
            job = self._work.get()
            try:
                job.function()
            except OSError as error:
                job.error = error
            finally:
                job.done.release()


class _Job:
    """A call for the helper thread; `done` is released when it was made."""

    __slots__ = ("done", "error", "function")

    def __init__(self, function: Callable[[], None]) -> None:
        self.function = function
        self.error: OSError | None = None
        self.done = threading.Lock()
        self.done.acquire()


class _Target:
    """Another thread's fds, inside the helper thread: copied here under chosen numbers."""

    def __init__(self, tid: int) -> None:
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        # At the upper end, where no program's number is likely to be.
        self._pidfd = _move(pidfd_open_thread(tid), limit - 1)
        self._epoll = limit - 2

    def __enter__(self) -> _Target:
        return self

    def __exit__(self, *_exception: object) -> None:
        os.close(self._pidfd)

    def borrow(self, number: int) -> _Closing:
        """Its file at the same number here."""
        return _Closing(_move(pidfd_getfd(self._pidfd, number), number))

    def borrow_epoll(self, number: int) -> _Closing:
        """Its epoll set, out of the way of every program's number."""
        return _Closing(_move(pidfd_getfd(self._pidfd, number), self._epoll))


class _Closing:
    """An fd that is closed at the end of the block."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def __enter__(self) -> int:
        return self._fd

    def __exit__(self, *_exception: object) -> None:
        os.close(self._fd)


def _move(fd: int, number: int) -> int:
    if fd != number:
        try:
            os.dup2(fd, number, inheritable=False)
        finally:
            os.close(fd)
    return number


def _find(tid: int, fd: int, candidates: list[int], found: list[Registration]) -> None:
    with _Target(tid) as target, target.borrow(fd):
        for number in candidates:
            try:
                with target.borrow_epoll(number) as epoll:
                    registered = _is_registered(epoll, fd)
            except OSError:
                # Closed since.
                continue
            if registered:
                found.extend(_read_registrations(tid, number, fd))


def _is_registered(epoll: int, fd: int) -> bool:
    event = epoll_event(0, 0)
    if _epoll_ctl(epoll, EPOLL_CTL_ADD, fd, ctypes.byref(event)) == 0:
        _epoll_ctl(epoll, EPOLL_CTL_DEL, fd, None)
        return False
    # EINVAL: the number is another file's now, no epoll set's.
    return ctypes.get_errno() == errno.EEXIST


def _add(tid: int, fd: int, registrations: list[Registration]) -> None:
    with _Target(tid) as target, target.borrow(fd):
        for registration in registrations:
            with target.borrow_epoll(registration.epoll_fd) as epoll:
                event = epoll_event(registration.events, registration.data)
                if _epoll_ctl(epoll, EPOLL_CTL_ADD, fd, ctypes.byref(event)) < 0:
                    code = ctypes.get_errno()
                    if code != errno.EEXIST:
                        raise SyscallError("epoll_ctl", code, f"fd {fd}")


def _read_registrations(tid: int, epoll_fd: int, fd: int) -> list[Registration]:
    with open(f"/proc/{tid}/fdinfo/{epoll_fd}", "rb") as fdinfo:
        return _parse(fdinfo.read(), epoll_fd, fd)


def _parse(text: bytes, epoll_fd: int, fd: int) -> list[Registration]:
    """Every item for `fd` in the fdinfo of a set: lines `tfd: N events: X data: Y ...`."""
    found = []
    for line in text.splitlines():
        if line.startswith(b"tfd:"):
            fields = line.replace(b":", b" ").split()
            if int(fields[1]) == fd:
                found.append(Registration(epoll_fd, int(fields[3], 16), int(fields[5], 16)))
    return found
