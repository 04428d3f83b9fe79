"""What a predecessor of traps took with it when it died: held calls, and which fds are epoll sets.

What it was in the middle of is finished (in_hand.py), for a thread that still waits for that very
answer. The notifications of all others nobody will see again, and the threads would wait for ever:
each is made to issue its call anew, which is judged by the socket behind its fd, as any other
(design, what survives what).
"""

from __future__ import annotations

import contextlib
import logging
import os
from typing import TYPE_CHECKING

from slim.broker import in_hand
from slim.broker.errors import SyscallError, TargetGone
from slim.broker.kernel.epoll_registrations import Registration
from slim.broker.kernel.pidfd import is_close_on_exec
from slim.broker.kernel.ptrace import restart_call
from slim.broker.kernel.seccomp_notify import Notification
from slim.broker.kernel.socket_options import read_cookie
from slim.broker.perform import capture, find_fds, mover
from slim.broker.supervisor import PendingCall

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from slim.broker.supervisor import Supervisor

log = logging.getLogger(__name__)


def restart_held_calls(namespaces: Collection[int]) -> int:
    """Restart every call that waits for a seccomp answer in these network namespaces (inodes).

    A call that no traps has received yet is restarted too, which harms nothing. Gives the number.
    """
    count = 0
    for pid, _ in _processes(namespaces):
        for tid in _threads(pid):
            if not _is_held(pid, tid):
                continue
            try:
                restart_call(tid)
            except SyscallError as error:
                log.warning("thread %d: its held call is not restarted: %s", tid, error)
            else:
                count += 1
    return count


def finish(work: in_hand.Work, container: Supervisor) -> None:
    """Do the rest of what the predecessor was doing for a thread of this container."""
    call = PendingCall(
        container,
        container.workload,
        Notification(work.call.notification, work.call.tid, 0, 0, (0, 0, 0, 0, 0, 0)),
    )
    try:
        match work:
            case in_hand.Swap():
                _finish_swap(work, call)
            case in_hand.Delivery():
                _finish_delivery(work, call)
            case in_hand.Answer():
                call.fail(work.errno)
    except TargetGone:
        log.debug("thread %d: was answered, or has left its call", call.tid)
    except OSError as error:
        log.warning("thread %d: its call is not finished: %s", call.tid, error)


def _finish_swap(work: in_hand.Swap, call: PendingCall) -> None:
    """The new file may be behind the fd: then behind its duplicates too, and in the epoll sets.

    A copy of the old one in another process is not looked for.
    """
    with capture(call.tid, work.fd) as new:
        if read_cookie(new) != work.new_cookie:
            # It came to nothing: the call is simply issued again.
            return
        # Without the call, too: a thread that left it may wait for events now.
        mover().add(call.tid, work.fd, [Registration(*each) for each in work.registrations])
        for other in find_fds(call.tid, work.old_inode):
            call.replace(new.fileno(), other, cloexec=is_close_on_exec(call.tid, other))
    if work.then is not None:
        call.fail(work.then)


def _finish_delivery(work: in_hand.Delivery, call: PendingCall) -> None:
    """The connection may be in the program already, under a number that it was not told."""
    call.ensure_valid()
    for number in sorted(_fds(call.tid), reverse=True):
        with contextlib.suppress(OSError), capture(call.tid, number) as sock:
            if read_cookie(sock) == work.cookie:
                call.finish(number)
                return


def find_epoll_numbers(namespaces: Collection[int]) -> dict[int, set[int]]:
    """Fd numbers behind which processes have epoll sets, by network namespace (inode).

    Known otherwise by the epoll_create calls that made them. Threads with fd tables of their own
    are not looked into: their registrations are not moved until they make a set anew.
    """
    found: dict[int, set[int]] = {}
    for pid, namespace in _processes(namespaces):
        found.setdefault(namespace, set()).update(_epoll_numbers_of(pid))
    return found


def _epoll_numbers_of(pid: int) -> Iterator[int]:
    for number in _fds(pid):
        try:
            if os.readlink(f"/proc/{pid}/fd/{number}") == "anon_inode:[eventpoll]":
                yield number
        except OSError:
            # Closed meanwhile.
            continue


def _fds(tid: int) -> list[int]:
    try:
        return [int(name) for name in os.listdir(f"/proc/{tid}/fd")]
    except OSError:
        return []


def _processes(namespaces: Collection[int]) -> Iterator[tuple[int, int]]:
    """(pid, network namespace) of every process in one of these."""
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                namespace = os.stat(f"/proc/{name}/ns/net").st_ino
            except OSError:
                continue
            if namespace in namespaces:
                yield int(name), namespace


def _threads(pid: int) -> list[int]:
    try:
        return [int(name) for name in os.listdir(f"/proc/{pid}/task")]
    except OSError:
        return []


def _is_held(pid: int, tid: int) -> bool:
    """Whether the thread sleeps in the kernel's seccomp code (proc_pid_wchan(5))."""
    try:
        with open(f"/proc/{pid}/task/{tid}/wchan") as wchan:
            return "seccomp" in wchan.read()
    except OSError:
        return False
