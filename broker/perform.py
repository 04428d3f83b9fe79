"""Effects on the target's sockets that several actions share: capture, observe, swap, write.

Decisions are made in pipeline.py; what happens over time is in connecting.py and accepting.py.
"""

from __future__ import annotations

import errno
import functools
import logging
import os
import socket
from typing import TYPE_CHECKING

from slim.broker import calls
from slim.broker.errors import SyscallError
from slim.broker.kernel import sockaddr
from slim.broker.kernel.epoll import EPOLLIN, Epoll
from slim.broker.kernel.epoll_registrations import Registration, RegistrationMover
from slim.broker.kernel.pidfd import ThreadPidfds, is_close_on_exec
from slim.broker.kernel.process_memory import process_vm_readv, process_vm_writev
from slim.broker.kernel.socket_options import (
    TCP_LISTEN,
    SocketFacts,
    apply_options,
    copy_file_state,
    find_uncopyable,
    is_nonblocking,
    read_cookie,
    read_facts,
)
from slim.broker.pipeline import Observed
from slim.broker.workloads import SYNTHETIC_UID_BASE

if TYPE_CHECKING:
    from slim.broker.endpoints import Endpoint
    from slim.broker.host_sockets import HostSockets
    from slim.broker.in_hand import InHand
    from slim.broker.supervisor import PendingCall
    from slim.broker.workloads import Workload

log = logging.getLogger(__name__)

_threads = ThreadPidfds()
"""Traps is one thread."""


class OtherCopyAlive(OSError):
    """The old socket lives on in another process: the swap was undone.

    ECONNABORTED: what connect(2) says of a socket that cannot be connected anew.
    """

    def __init__(self) -> None:
        super().__init__(errno.ECONNABORTED, "another process has a copy of the socket")


def forget_dead_threads() -> None:
    """A container has ended: what is kept of its threads is closed."""
    _threads.close_dead()


def capture(tid: int, fd: int) -> socket.socket:
    """The file behind a thread's fd, as a socket object that owns our duplicate of it.

    OSError EBADF when there is none, ENOTSOCK when it is no socket, EPERM when ptrace rights
    over the target are missing (ptrace(2), access mode checks).
    """
    duplicate = _threads.getfd(tid, fd)
    try:
        return socket.socket(fileno=duplicate)
    except OSError:
        os.close(duplicate)
        raise


def observe_listener(sock: socket.socket, cookie: int, family: int, host_netns: int) -> Observed:
    """A host listener of ours, known by its cookie: all but one fact is known, too."""
    facts = SocketFacts(cookie, family, True, host_netns, TCP_LISTEN, is_nonblocking(sock))
    return Observed(facts, is_ours=True)


def observe(sock: socket.socket, call: calls.SocketCall, host_netns: int) -> Observed:
    """Read what decide() wants to know of a captured socket."""
    facts = read_facts(sock)
    is_ours = facts.netns == host_netns and os.fstat(sock.fileno()).st_uid >= SYNTHETIC_UID_BASE
    observed = Observed(facts, is_ours)
    if facts.is_tcp and not is_ours and isinstance(call, calls.Connect | calls.Listen):
        observed.local = local_endpoint(sock)
        observed.uncopyable = find_uncopyable(sock)
        if facts.domain == socket.AF_INET6 and isinstance(call, calls.Connect):
            observed.v6only = bool(sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY))
    return observed


def local_endpoint(sock: socket.socket) -> Endpoint:
    """getsockname(2) of an IPv4 or IPv6 socket."""
    return sockaddr.from_python(sock.getsockname())


def make_alike(
    old: socket.socket,
    domain: int,
    workload: Workload,
    host: HostSockets | None,
    *,
    listener: bool,
) -> tuple[socket.socket, str]:
    """A socket with the options of `old`: one of `host`, or of the workload's namespace.

    Gives the socket, owned by the caller, and the name of an option that was refused.
    """
    new = workload.make_socket(domain) if host is None else host.make(workload.cookie, domain)
    try:
        changed = workload.fresh_options(domain).changed(old)
        refused = apply_options(new, changed, listener=listener)
        copy_file_state(old.fileno(), new.fileno())
        if host is not None:
            os.fchown(new.fileno(), workload.uid, -1)
    except OSError:
        new.close()
        raise
    return new, refused


def host_socket(domain: int) -> socket.socket:
    """A plain TCP socket; traps itself lives in the host's namespace."""
    return socket.socket(domain, socket.SOCK_STREAM, socket.IPPROTO_TCP)


def swap(
    call: PendingCall,
    fd: int,
    old: socket.socket,
    new: socket.socket,
    hand: InHand,
    then: int | None = None,
) -> None:
    """Put `new` behind the target's fd in place of `old`; takes (closes) `old`, borrows `new`.

    The other copies of the old socket are looked for by a weak reference: it is registered in an
    epoll set and our own copy closed; after the swap an unconnected TCP socket that still lives
    reports EPOLLHUP. Other numbers of the same table are swapped too; a copy in another process
    makes the swap be undone: OtherCopyAlive. A copy that nobody has behind an fd (it is on its way
    through a unix socket) stays as it is: without it nothing can be undone. Epoll registrations of
    the old socket are made anew for the new one, if the program has epoll sets at all.

    `then` is the errno that the caller answers with at once, if it does: when this returns it is in
    `hand` already.
    """
    cloexec = is_close_on_exec(call.tid, fd)
    registrations = find_registrations(call, fd)
    watch = _old_copies()
    is_watched = is_done = False
    try:
        watch.add(old.fileno(), EPOLLIN, 1)
        is_watched = True
        inode = os.fstat(old.fileno()).st_ino
        old.close()
        hand.swap(call, fd, inode, read_cookie(new), registrations, then)
        call.replace(new.fileno(), fd, cloexec=cloexec)
        if registrations:
            mover().add(call.tid, fd, registrations)
        if not watch.wait(0):
            is_watched = False
            is_done = True
            return
        others = find_fds(call.tid, inode)
        for other in others:
            # Each number has registrations of its own, which go with the old file.
            registrations = find_registrations(call, other)
            hand.swap(call, other, inode, read_cookie(new), registrations, then)
            call.replace(new.fileno(), other, cloexec=is_close_on_exec(call.tid, other))
            if registrations:
                mover().add(call.tid, other, registrations)
        if not watch.wait(0):
            is_watched = False
            is_done = True
            return
    finally:
        if is_done and then is not None:
            hand.answer(call, then)
        else:
            hand.nothing()
        if is_watched:
            # The old socket is in it still, and no fd is left to take it out by.
            _old_copies.cache_clear()
            watch.close()
    if _swap_back(call, [fd, *others], inode):
        raise OtherCopyAlive


@functools.cache
def _old_copies() -> Epoll:
    """The set that holds the old socket during a swap, and nothing at other times."""
    return Epoll(max_events=1)


def find_registrations(call: PendingCall, fd: int) -> list[Registration]:
    """Epoll registrations of the caller's fd, in the sets that are known of its container."""
    numbers = call.container.epoll_numbers
    return mover().find(call.tid, fd, numbers) if numbers else []


@functools.cache
def mover() -> RegistrationMover:
    """The helper thread, started when the first program with an epoll set connects."""
    return RegistrationMover()


def _swap_back(call: PendingCall, fds: list[int], inode: int) -> bool:
    """Put the old socket back; False if it is behind nobody's fd."""
    # The copy is in another process that shares the container: a fork between socket and connect.
    for pid in _processes_of(call):
        for number in find_fds(pid, inode):
            try:
                with capture(pid, number) as old:
                    if os.fstat(old.fileno()).st_ino != inode:
                        continue
                    for fd in fds:
                        call.replace(old.fileno(), fd, cloexec=is_close_on_exec(call.tid, fd))
                    return True
            except OSError:
                continue
    log.info("thread %d: the other copy of a replaced socket is behind no fd", call.tid)
    return False


def _processes_of(call: PendingCall) -> list[int]:
    """Processes in the workload's network namespace, the caller's own among them."""
    wanted = os.fstat(call.workload.namespace_fd()).st_ino
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                if os.stat(f"/proc/{name}/ns/net").st_ino == wanted:
                    found.append(int(name))
            except OSError:
                continue
    return found


def find_fds(tid: int, inode: int) -> list[int]:
    """Numbers in the thread's fd table behind which the socket with that inode is."""
    wanted = f"socket:[{inode}]"
    found = []
    try:
        names = os.listdir(f"/proc/{tid}/fd")
    except OSError:
        return []
    for name in names:
        try:
            if os.readlink(f"/proc/{tid}/fd/{name}") == wanted:
                found.append(int(name))
        except OSError:
            continue
    return found


def write_name(
    call: PendingCall, address: int, length: int, endpoint: Endpoint, domain: int
) -> None:
    """Write a socket address as the kernel does for getsockname(2) and accept(2).

    The program's length is read, at most that much of the address written, and the true length
    written back. OSError EFAULT or EINVAL, as the kernel would answer.
    """
    raw = sockaddr.encode(endpoint, domain)
    room = int.from_bytes(process_vm_readv(call.tid, length, 4), "little", signed=True)
    call.ensure_valid()
    if room < 0:
        raise SyscallError("write_name", errno.EINVAL)
    process_vm_writev(call.tid, [(address, raw[:room]), (length, len(raw).to_bytes(4, "little"))])


def write_int(call: PendingCall, address: int, length: int, value: int) -> None:
    """Write a number as the kernel does for getsockopt(2): at most four bytes, and how many.

    OSError EFAULT, as the kernel would answer.
    """
    room = min(4, int.from_bytes(process_vm_readv(call.tid, length, 4), "little"))
    call.ensure_valid()
    raw = value.to_bytes(4, "little")[:room]
    process_vm_writev(call.tid, [(length, room.to_bytes(4, "little")), (address, raw)])
