"""Calls that a predecessor of traps held when it died.

Their notifications were received, so nobody will see them again, and the threads would wait for
ever: each is made to issue its call anew. The call is judged by the socket behind its fd, as any
other (design, what survives what).
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
    for pid in _processes(namespaces):
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


def _processes(namespaces: Collection[int]) -> Iterator[int]:
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                if os.stat(f"/proc/{name}/ns/net").st_ino in namespaces:
                    yield int(name)
            except OSError:
                continue


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
