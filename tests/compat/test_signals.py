"""Signals, timers and timeouts while connect and accept wait: targets/signals.c."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

from support.compatibility import Cases
from support.polling import eventually
from support.probes import peers
from support.silence import silence

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    from support.pairs import Both, Pair
    from support.residents import Forked
    from support.two_hosts import TwoHosts

    Compiled = Callable[[str, str], str]

    class Play(Protocol):
        def __call__(
            self, case: str, flavour: str, but: tuple[str, str] | None = None
        ) -> list[str]: ...


pytestmark = [
    pytest.mark.needs_root,
    pytest.mark.needs_netns,
    pytest.mark.needs_program("nft", "cc"),
    pytest.mark.parametrize("version", [4]),
]
COMPATIBILITY = Cases(heading="Signals while a call waits")

DYNAMIC = pytest.mark.parametrize("flavour", ["dynamic"])
EVERY_LIBC = pytest.mark.parametrize(
    "flavour",
    [
        "dynamic",
        "static",
        pytest.param("musl", marks=pytest.mark.needs_program("musl-gcc")),
    ],
)


TIMEOUT_RESTARTS = pytest.mark.differs(
    "with SO_SNDTIMEO or SO_RCVTIMEO and a handler with SA_RESTART the kernel issues the call "
    "again, as for every call that waits in seccomp; natively it ends with EINTR"
)

INTERRUPTED = ("connect: -1 EINTR", "connect: -1 EINPROGRESS")
ENDED = ("accept: -1 EINTR", "accept: -1 EAGAIN")


def read_until(running: Forked, *words: str) -> list[str]:
    """Lines of output, up to and with one of these."""
    lines = [running.line()]
    while lines[-1] not in words:
        lines.append(running.line())
    return lines


@pytest.fixture
def connecting(hosts: TwoHosts, both: Both, compiled: Compiled, port: int) -> Play:
    """Plays a case in which the server does not answer until the signal was there."""

    def play(pair: Pair, program: str, case: str) -> list[str]:
        with silence(hosts, pair, port) as silent:
            where = (silent.address, str(port), str(pair.port))
            running = silent.client.start(program, case, *where)
            lines = read_until(running, "signal", "pending")
            # `signal` comes from the handler, before the call ends; the rest then from the call.
            lines += (
                read_until(running, "pending") if case in PENDING and lines[-1] == "signal" else []
            )
        return lines + running.lines()

    def both_play(case: str, flavour: str, but: tuple[str, str] | None = None) -> list[str]:
        program = compiled("signals", flavour)
        found: list[str] = both.same(lambda pair: play(pair, program, case), but=but)
        return found

    return both_play


PENDING = ("connect-alarm", "connect-timeout", "connect-timeout-signal", "connect-jump")


@EVERY_LIBC
def test_alarm_without_restart_ends_a_connect_that_goes_on_behind_it(
    connecting: Play, flavour: str
) -> None:
    seen = connecting("connect-alarm", flavour)
    assert seen[:6] == [
        "signal",
        "connect: -1 EINTR",
        "signals: 1",
        "SO_ERROR: 0",
        "ready: 0",
        "connect without waiting: -1 EALREADY",
    ]
    assert seen[-1] == "connect when connected: -1 EISCONN"


@EVERY_LIBC
def test_timer_with_restart_lets_connect_go_on(connecting: Play, flavour: str) -> None:
    assert connecting("connect-alarm-restart", flavour)[1:3] == ["connect: 0", "signals: 1"]


@DYNAMIC
def test_timer_that_never_stops_lets_connect_go_on(connecting: Play, flavour: str) -> None:
    assert connecting("connect-timer", flavour)[1:3] == ["connect: 0", "several signals: 1"]


@DYNAMIC
def test_connect_past_its_send_timeout_is_in_progress_and_then_already(
    connecting: Play, flavour: str
) -> None:
    seen = connecting("connect-timeout", flavour)
    assert seen[:2] == ["connect: -1 EINPROGRESS", "connect again: -1 EALREADY"]


@TIMEOUT_RESTARTS
@DYNAMIC
def test_signal_ends_a_connect_with_a_send_timeout_in_spite_of_restart(
    connecting: Play, flavour: str
) -> None:
    assert connecting("connect-timeout-signal", flavour, INTERRUPTED)[1] == "connect: -1 EINTR"


@DYNAMIC
def test_handler_that_jumps_out_of_connect(connecting: Play, flavour: str) -> None:
    assert connecting("connect-jump", flavour)[:3] == ["jumped", "pending", "connect once more: 0"]


@DYNAMIC
def test_handler_that_connects_while_a_connect_waits(connecting: Play, flavour: str) -> None:
    seen = connecting("connect-handler", flavour)
    assert seen[0] == "connect in the handler: 0"
    assert "connect: 0" in seen


@EVERY_LIBC
def test_thread_that_is_cancelled_in_connect(connecting: Play, flavour: str) -> None:
    assert connecting("connect-cancel", flavour) == ["cancel: 0", "cancelled: 1", "signal"]


# --- accept -------------------------------------------------------------------------------------


@pytest.fixture
def accepting(both: Both, compiled: Compiled, port: int) -> Play:
    """Plays a case in which clients come after the signal."""

    def play(pair: Pair, program: str, case: str) -> list[str]:
        running = pair.server.start(program, case, pair.anywhere, str(port))
        lines = read_until(running, "signal", "waiting")
        if case.endswith(("accept-alarm", "timeout-signal")):
            lines += read_until(running, "waiting")
        visitor = pair.client.probe(peers.visit_plainly, pair.address, port)
        lines += running.lines()
        return [*lines, f"client: {visitor.result()}"]

    def both_play(case: str, flavour: str, but: tuple[str, str] | None = None) -> list[str]:
        program = compiled("signals", flavour)
        found: list[str] = both.same(lambda pair: play(pair, program, case), but=but)
        return found

    return both_play


@EVERY_LIBC
def test_alarm_without_restart_ends_accept(accepting: Play, flavour: str) -> None:
    seen = accepting("accept-alarm", flavour)
    assert seen[:4] == ["signal", "accept: -1 EINTR", "signals: 1", "accept: -1 EAGAIN"]
    assert "accept: ok" in seen


@EVERY_LIBC
def test_alarm_with_restart_lets_accept_go_on(accepting: Play, flavour: str) -> None:
    seen = accepting("accept-alarm-restart", flavour)
    assert seen[:2] == ["signal", "accept: ok"]


@DYNAMIC
def test_timer_that_never_stops_lets_accept_go_on(accepting: Play, flavour: str) -> None:
    assert "accept: ok" in accepting("accept-timer", flavour)


@TIMEOUT_RESTARTS
@DYNAMIC
def test_signal_ends_an_accept_with_a_receive_timeout_in_spite_of_restart(
    accepting: Play, flavour: str
) -> None:
    seen = accepting("accept-timeout-signal", flavour, ENDED)
    assert seen[1:4] == ["accept: -1 EINTR", "signals: 1", "accept: -1 EAGAIN"]


@EVERY_LIBC
def test_thread_that_is_cancelled_in_accept_takes_no_connection(
    accepting: Play, flavour: str
) -> None:
    assert accepting("accept-cancel", flavour)[:2] == ["cancel: 0", "cancelled: 1"]


@DYNAMIC
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_signal_ends_a_program_that_waits_in_accept(
    both: Both, compiled: Compiled, port: int, flavour: str, number: signal.Signals
) -> None:
    program = compiled("signals", flavour)

    def play(pair: Pair) -> int:
        running = pair.server.start(program, "accept-for-ever", pair.anywhere, str(port))
        assert running.line() == "waiting"
        eventually(lambda: running.is_asleep(), "the program waits")
        running.send_signal(number)
        return running.end(kill=False)

    assert both.same(play) == -number
