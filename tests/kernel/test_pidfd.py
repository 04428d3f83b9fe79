"""The fds of other threads, by pidfds that are kept."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from slim.broker.errors import SyscallError
from slim.broker.kernel import features
from slim.broker.kernel.pidfd import ThreadPidfds

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [
    pytest.mark.needs_root,
    pytest.mark.skipif(not features.has_pidfd_thread(), reason="PIDFD_THREAD came with Linux 6.9"),
]

Child = subprocess.Popen[bytes]


@pytest.fixture
def pidfds() -> Iterator[ThreadPidfds]:
    found = ThreadPidfds(limit=2)
    yield found
    found.close()


@pytest.fixture
def children() -> Iterator[list[Child]]:
    """Three processes that wait for the end of their input."""
    started = [
        subprocess.Popen(
            [sys.executable, "-c", "import sys; print(flush=True); sys.stdin.read()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for _ in range(3)
    ]
    for child in started:
        assert child.stdout is not None
        child.stdout.readline()
    yield started
    for child in started:
        end(child)


def end(child: Child) -> None:
    child.communicate(timeout=10)


def fds() -> int:
    return len(os.listdir("/proc/self/fd"))


def is_its_input(pidfds: ThreadPidfds, child: Child) -> bool:
    """Whether fd 0 of the child is the other end of our pipe."""
    assert child.stdin is not None
    duplicate = pidfds.getfd(child.pid, 0)
    try:
        return os.fstat(duplicate).st_ino == os.fstat(child.stdin.fileno()).st_ino
    finally:
        os.close(duplicate)


def test_one_pidfd_is_kept_for_a_thread(pidfds: ThreadPidfds, children: list[Child]) -> None:
    before = fds()
    for _ in range(3):
        assert is_its_input(pidfds, children[0])
    assert fds() == before + 1


def test_the_least_used_is_closed_at_the_limit(pidfds: ThreadPidfds, children: list[Child]) -> None:
    before = fds()
    for child in [*children, *children]:
        assert is_its_input(pidfds, child)
    assert fds() == before + 2


def test_a_thread_that_has_ended_is_esrch(pidfds: ThreadPidfds, children: list[Child]) -> None:
    assert is_its_input(pidfds, children[0])
    before = fds()
    end(children[0])
    with pytest.raises(SyscallError) as caught:
        pidfds.getfd(children[0].pid, 0)
    assert caught.value.errno == errno.ESRCH
    # Its two pipes, and the pidfd.
    assert fds() == before - 3


def test_no_such_fd_is_ebadf_and_the_pidfd_stays(
    pidfds: ThreadPidfds, children: list[Child]
) -> None:
    assert is_its_input(pidfds, children[0])
    before = fds()
    with pytest.raises(SyscallError) as caught:
        pidfds.getfd(children[0].pid, 999)
    assert caught.value.errno == errno.EBADF
    assert fds() == before


def test_those_of_ended_threads_are_closed(pidfds: ThreadPidfds, children: list[Child]) -> None:
    for child in children[:2]:
        assert is_its_input(pidfds, child)
    before = fds()
    end(children[0])
    pidfds.close_dead()
    assert fds() == before - 3
    assert is_its_input(pidfds, children[1])
