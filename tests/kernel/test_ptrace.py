"""A held call is issued again, and the program notices nothing."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import socket
from typing import TYPE_CHECKING

import pytest

from slim.broker.errors import SyscallError
from slim.broker.kernel import seccomp_install, seccomp_notify
from slim.broker.kernel.ptrace import restart_call
from slim.broker.kernel.seccomp_filter import build_filter
from slim.broker.recovery import restart_held_calls

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.needs_root

LIMIT_MS = 5000
STATUS_OF_SUCCESS = 7


@pytest.fixture
def held() -> Iterator[tuple[int, int]]:
    """A child that is held in getpeername, received by nobody yet: its id and the listener."""
    program = build_filter("portable")
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        _run_child(theirs, program)
    _, (listener,), _, _ = socket.recv_fds(ours, 1, 1)
    yield pid, listener
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)
    os.close(listener)
    ours.close()
    theirs.close()


def _run_child(channel: socket.socket, program: bytes) -> None:
    """Ends with STATUS_OF_SUCCESS if getpeername fails with the answer's errno, and only so."""
    status = 1
    try:
        signal.alarm(20)
        listener = seccomp_install.install_filter(program)
        socket.send_fds(channel, [b"x"], [listener])
        os.close(listener)
        with socket.socket() as sock:
            try:
                sock.getpeername()
            except OSError as error:
                status = STATUS_OF_SUCCESS if error.errno == errno.EL2HLT else 2
    finally:
        os._exit(status)


def _receive(listener: int) -> seccomp_notify.Notification:
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    assert poll.poll(LIMIT_MS), "no notification came"
    notification = seccomp_notify.receive(listener)
    assert notification is not None
    return notification


def _exit_status(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_call_that_somebody_held_comes_again_and_gets_its_answer(held: tuple[int, int]) -> None:
    pid, listener = held
    first = _receive(listener)
    restart_call(pid)
    second = _receive(listener)
    assert second.id != first.id
    assert (second.nr, second.args) == (first.nr, first.args)
    assert not seccomp_notify.is_valid(listener, first.id)
    seccomp_notify.reply(listener, second.id, error=errno.EL2HLT)
    assert _exit_status(pid) == STATUS_OF_SUCCESS


def test_every_held_call_of_a_namespace_is_restarted(held: tuple[int, int]) -> None:
    pid, listener = held
    _receive(listener)
    assert restart_held_calls({os.stat(f"/proc/{pid}/ns/net").st_ino}) >= 1
    seccomp_notify.reply(listener, _receive(listener).id, error=errno.EL2HLT)
    assert _exit_status(pid) == STATUS_OF_SUCCESS


def test_calls_of_other_namespaces_are_left_alone(held: tuple[int, int]) -> None:
    _, listener = held
    first = _receive(listener)
    assert restart_held_calls({1}) == 0
    assert seccomp_notify.is_valid(listener, first.id)


def test_thread_that_is_gone_is_an_error(held: tuple[int, int]) -> None:
    pid, _ = held
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    with pytest.raises(SyscallError) as caught:
        restart_call(pid)
    assert caught.value.errno == errno.ESRCH
