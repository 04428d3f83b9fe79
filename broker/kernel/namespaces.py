"""Network namespaces and the mounts that go with one: setns, unshare, mount, SO_NETNS_COOKIE.

A namespace belongs to a thread. What slim-run enters it never leaves (it execs there);
slimd only ever visits, by `in_namespace`.
"""

from __future__ import annotations

import ctypes
import os
import socket
from _thread import get_ident

from slim.broker.kernel.libc import libc, syscall_error

# From linux/sched.h.
CLONE_NEWNET = 0x40000000
CLONE_NEWNS = 0x00020000
# From linux/mount.h and linux/fs.h.
MNT_DETACH = 2
MS_BIND = 4096
MS_REC = 16384
MS_SHARED = 1 << 20
MS_SLAVE = 1 << 19
# From asm-generic/socket.h; Linux 5.14.
SO_NETNS_COOKIE = 71

libc.mount.argtypes = [
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_ulong,
    ctypes.c_void_p,
]


def setns(namespace: int, kind: int) -> None:
    """setns(2), Linux 3.0: move the calling thread; borrows the fd."""
    if libc.setns(namespace, kind) < 0:
        raise syscall_error("setns")


def unshare(flags: int) -> None:
    """unshare(2), Linux 2.6.16: give the calling thread namespaces of its own."""
    if libc.unshare(flags) < 0:
        raise syscall_error("unshare")


def mount(source: str, target: str, flags: int) -> None:
    """mount(2), Linux 1.0, without a file system type: binds and changes of propagation."""
    if libc.mount(os.fsencode(source), os.fsencode(target), None, flags, None) < 0:
        raise syscall_error("mount", f"{source or 'none'} on {target}")


def umount(target: str, flags: int) -> None:
    """umount2(2), Linux 2.1.116: take away the topmost mount on the path."""
    if libc.umount2(os.fsencode(target), flags) < 0:
        raise syscall_error("umount2", target)


def open_namespace(path: str) -> int:
    """open(2) of a namespace file, Linux 3.0, such as /proc/self/ns/net; the caller owns the fd."""
    # A path from a command line may be a FIFO, on which a plain open would wait for a writer.
    return os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)


def netns_cookie(sock: socket.socket) -> int:
    """SO_NETNS_COOKIE of socket(7), Linux 5.14: names the namespace the socket was born in.

    Unique until the machine restarts, unlike inode numbers and fds.
    """
    raw = sock.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8)
    return int.from_bytes(raw, "little")


def own_netns_cookie() -> int:
    """SO_NETNS_COOKIE, Linux 5.14, of the network namespace that the calling thread is in."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        return netns_cookie(sock)


def netns_cookie_of(namespace: int) -> int:
    """SO_NETNS_COOKIE, Linux 5.14, of the network namespace behind an fd; borrows the fd."""
    with in_namespace(namespace):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    with sock:
        return netns_cookie(sock)


class in_namespace:
    """setns(2), Linux 3.0: the calling thread is in that network namespace for the block's length.

    Borrows the fd. The way back is an fd of the namespace that the process was in at the first
    use, opened once; blocks therefore do not nest. Sockets keep the namespace of their birth, so
    the block holds no more than the calls that make them. SyscallError on leaving means that the
    thread is still inside, and must do nothing more.
    """

    __slots__ = ("_namespace",)

    def __init__(self, namespace: int) -> None:
        self._namespace = namespace

    def __enter__(self) -> None:
        thread = get_ident()
        if thread in _visitors:
            raise RuntimeError("in_namespace does not nest")
        _home_namespace()
        setns(self._namespace, CLONE_NEWNET)
        _visitors.add(thread)

    def __exit__(self, *_exception: object) -> None:
        setns(_home_namespace(), CLONE_NEWNET)
        _visitors.discard(get_ident())


_visitors: set[int] = set()
_home: list[int] = []


def _home_namespace() -> int:
    if not _home:
        _home.append(open_namespace("/proc/thread-self/ns/net"))
    return _home[0]
