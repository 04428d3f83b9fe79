"""Ending other processes' TCP connections where the kernel has no SOCK_DESTROY.

A duplicate of the fd (pidfd_getfd) is disconnected: connect(2) with AF_UNSPEC sends RST and wakes
who waits. Counterpart and first choice: sock_diag.destroy_many.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from typing import TYPE_CHECKING

from slim.broker.kernel.libc import libc, syscall_error
from slim.broker.kernel.pidfd import pidfd_getfd, pidfd_open

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

_UNSPECIFIED = bytes(16)
"""struct sockaddr with AF_UNSPEC."""
_SOCKET = "socket:["


def disconnect(fd: int) -> None:
    """connect(2) with AF_UNSPEC, Linux 2.0: ECONNRESET here, RST to the peer; borrows the fd.

    Linux 6.5 refuses it (EBUSY) while a thread waits on the socket: such a one is shut down in
    both directions, which ends it for the program too.
    """
    if libc.connect(fd, _UNSPECIFIED, len(_UNSPECIFIED)) == 0:
        return
    error = syscall_error("connect(AF_UNSPEC)", f"fd {fd}")
    if error.errno != errno.EBUSY:
        raise error
    with socket.socket(fileno=os.dup(fd)) as sock, contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


def disconnect_all(inodes: Collection[int]) -> set[int]:
    """Disconnect the sockets with these inode numbers; gives those that a process had open.

    Looks through the fds of every process (proc_pid_fd(5)): some 5 us for each.
    """
    ended: set[int] = set()
    for pid in [int(name) for name in os.listdir("/proc") if name.isdigit()]:
        for fd, inode in _sockets_of(pid):
            if inode in inodes and inode not in ended and _disconnect_one(pid, fd, inode):
                ended.add(inode)
    return ended


def _sockets_of(pid: int) -> Iterator[tuple[int, int]]:
    """Fd and inode number of every socket of a process; nothing of one that is gone."""
    with contextlib.suppress(OSError):
        for name in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                link = os.readlink(f"/proc/{pid}/fd/{name}")
                if link.startswith(_SOCKET):
                    yield int(name), int(link[len(_SOCKET) : -1])


def _disconnect_one(pid: int, fd: int, inode: int) -> bool:
    try:
        pidfd = pidfd_open(pid)
    except OSError:
        return False
    try:
        copy = pidfd_getfd(pidfd, fd)
    except OSError:
        return False
    finally:
        os.close(pidfd)
    try:
        # The number may have been closed and given to another file since it was read.
        if os.fstat(copy).st_ino != inode:
            return False
        disconnect(copy)
    except OSError as error:
        if error.errno in (errno.ENOTCONN, errno.EBADF):
            return False
        raise
    finally:
        os.close(copy)
    return True
