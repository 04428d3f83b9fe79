"""What a predecessor of traps took with it when it died: held calls, and which fds are epoll sets.

Nobody will see the notifications of held calls again, and the threads would wait for ever: each is
made to issue its call anew. The call is judged by the socket behind its fd, as any other (design,
what survives what).
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

from slim.broker.errors import SyscallError
from slim.broker.kernel.ptrace import restart_call

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

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
    directory = f"/proc/{pid}/fd"
    try:
        names = os.listdir(directory)
    except OSError:
        return
    for name in names:
        try:
            if os.readlink(f"{directory}/{name}") == "anon_inode:[eventpoll]":
                yield int(name)
        except OSError:
            # Closed meanwhile.
            continue


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
