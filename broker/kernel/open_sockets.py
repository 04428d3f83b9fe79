"""Other processes' sockets, found by inode number and reached through a duplicate of the fd.

What slimd does to a connection that lives and that netlink cannot do: it keeps no fd of its own.
"""

from __future__ import annotations

import contextlib
import os
import socket
from typing import TYPE_CHECKING

from slim.broker.kernel.pidfd import pidfd_getfd, pidfd_open

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

_SOCKET = "socket:["


def visit_sockets(inodes: Collection[int], visit: Callable[[int, socket.socket], bool]) -> set[int]:
    """Call `visit` with inode number and a duplicate of each of these sockets, once each.

    Gives those for which it said True. It borrows the duplicate. Looks through the fds of every
    process (proc_pid_fd(5)): some 5 us for each.
    """
    visited: set[int] = set()
    done: set[int] = set()
    for pid in [int(name) for name in os.listdir("/proc") if name.isdigit()]:
        for fd, inode in _sockets_of(pid):
            if inode not in inodes or inode in visited:
                continue
            with contextlib.ExitStack() as open_fds:
                sock = _duplicate(pid, fd, inode)
                if sock is None:
                    continue
                open_fds.enter_context(sock)
                visited.add(inode)
                if visit(inode, sock):
                    done.add(inode)
                else:
                    visited.discard(inode)
        if len(visited) == len(inodes):
            break
    return done


def _sockets_of(pid: int) -> Iterator[tuple[int, int]]:
    """Fd and inode number of every socket of a process; nothing of one that is gone."""
    with contextlib.suppress(OSError):
        for name in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                link = os.readlink(f"/proc/{pid}/fd/{name}")
                if link.startswith(_SOCKET):
                    yield int(name), int(link[len(_SOCKET) : -1])


def _duplicate(pid: int, fd: int, inode: int) -> socket.socket | None:
    try:
        pidfd = pidfd_open(pid)
    except OSError:
        return None
    try:
        copy = pidfd_getfd(pidfd, fd)
    except OSError:
        return None
    finally:
        os.close(pidfd)
    try:
        # The number may have been closed and given to another file since it was read.
        if os.fstat(copy).st_ino == inode:
            return socket.socket(fileno=copy)
    except OSError:
        os.close(copy)
        raise
    os.close(copy)
    return None
