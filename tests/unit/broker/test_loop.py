"""The event loop of traps: callbacks by token, timers, and trouble in one of them."""

from __future__ import annotations

import logging
import os
import time
from typing import TYPE_CHECKING

import pytest

from slim.broker.kernel.epoll import EPOLLIN, EPOLLONESHOT
from slim.broker.loop import Loop

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """Both ends of a pipe with a byte in it."""
    reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    os.write(writing, b"x")
    yield reading, writing
    for fd in (reading, writing):
        os.close(fd)


@pytest.fixture
def loop() -> Iterator[Loop]:
    """A loop that stops by itself, should a test fail to."""
    loop = Loop()
    loop.call_later(5, loop.stop)
    yield loop
    loop._epoll.close()


def run_for(loop: Loop, delay_s: float = 0.02) -> None:
    loop.call_later(delay_s, loop.stop)
    loop.run()


def test_a_ready_file_calls_back_with_its_events(loop: Loop, pipe: tuple[int, int]) -> None:
    seen: list[int] = []

    def on_event(events: int) -> None:
        seen.append(events)
        os.read(pipe[0], 1)
        loop.stop()

    loop.watch(pipe[0], on_event)
    loop.run()
    assert seen == [EPOLLIN]


def test_no_callback_comes_after_unwatch(loop: Loop, pipe: tuple[int, int]) -> None:
    token = loop.watch(pipe[0], lambda _: pytest.fail("it was unwatched"))
    loop.unwatch(pipe[0], token)
    run_for(loop)


def test_a_forgotten_token_calls_nobody(loop: Loop, pipe: tuple[int, int]) -> None:
    """The fd is closed already; a duplicate keeps the registration alive."""
    reading = os.dup(pipe[0])
    token = loop.watch(reading, lambda _: pytest.fail("it was forgotten"), EPOLLIN | EPOLLONESHOT)
    os.close(reading)
    loop.forget(token)
    run_for(loop)


def test_a_oneshot_registration_fires_once_until_rearmed(loop: Loop, pipe: tuple[int, int]) -> None:
    seen: list[int] = []
    flags = EPOLLIN | EPOLLONESHOT
    token = loop.watch(pipe[0], seen.append, flags)
    run_for(loop)
    assert len(seen) == 1
    loop.rearm(pipe[0], token, flags)
    run_for(loop)
    assert len(seen) == 2


def test_one_callback_may_end_the_registration_of_another(loop: Loop) -> None:
    ends = [os.pipe2(os.O_CLOEXEC) for _ in range(2)]
    tokens: dict[int, int] = {}
    called: list[int] = []

    def end_the_other(own: int) -> Callable[[int], None]:
        def on_event(_: int) -> None:
            called.append(own)
            for fd in [fd for fd in tokens if fd != own]:
                loop.unwatch(fd, tokens.pop(fd))
            loop.unwatch(own, tokens.pop(own))

        return on_event

    for reading, writing in ends:
        os.write(writing, b"x")
        tokens[reading] = loop.watch(reading, end_the_other(reading))
    run_for(loop)
    assert len(called) == 1
    for fd in (fd for pair in ends for fd in pair):
        os.close(fd)


def test_timers_run_in_order_of_their_time(loop: Loop) -> None:
    seen: list[str] = []
    loop.call_later(0.02, lambda: seen.append("second"))
    loop.call_later(0.01, lambda: seen.append("first"))
    loop.call_later(0.01, lambda: seen.append("first, set later"))
    run_for(loop, 0.03)
    assert seen == ["first", "first, set later", "second"]


def test_a_timer_never_runs_early(loop: Loop) -> None:
    started = time.monotonic()
    loop.call_later(0.05, loop.stop)
    loop.run()
    assert time.monotonic() - started >= 0.05


def test_a_cancelled_timer_does_not_run(loop: Loop) -> None:
    timer = loop.call_later(0.0, lambda: pytest.fail("it was cancelled"))
    later = loop.call_later(0.01, lambda: pytest.fail("it was cancelled by the other"))
    timer.cancel()
    loop.call_later(0.0, later.cancel)
    run_for(loop)


def test_a_timer_may_set_the_next(loop: Loop) -> None:
    seen: list[int] = []

    def tick() -> None:
        seen.append(len(seen))
        if len(seen) == 3:
            loop.stop()
        else:
            loop.call_later(0.0, tick)

    loop.call_later(0.0, tick)
    loop.run()
    assert seen == [0, 1, 2]


def test_an_error_in_one_callback_is_logged_and_the_others_go_on(
    loop: Loop, pipe: tuple[int, int], caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: int) -> None:
        os.read(pipe[0], 1)
        raise RuntimeError("a bug in here")

    def fail_later() -> None:
        raise RuntimeError("a bug in there")

    loop.watch(pipe[0], fail)
    loop.call_later(0.0, fail_later)
    with caplog.at_level(logging.ERROR):
        run_for(loop)
    assert "a bug in here" in caplog.text
    assert "a bug in there" in caplog.text
