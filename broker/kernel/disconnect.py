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
from slim.broker.kernel.open_sockets import visit_sockets

if TYPE_CHECKING:
    from collections.abc import Collection

_UNSPECIFIED = bytes(16)
"""struct sockaddr with AF_UNSPEC."""


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
    """Disconnect the sockets with these inode numbers; gives those that a process had open."""
    return visit_sockets(inodes, lambda _, sock: _disconnect_one(sock.fileno()))


def _disconnect_one(fd: int) -> bool:
    try:
        disconnect(fd)
    except OSError as error:
        if error.errno in (errno.ENOTCONN, errno.EBADF):
            return False
        raise
    return True
