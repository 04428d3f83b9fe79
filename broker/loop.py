"""The event loop of traps: one thread, one epoll set, callbacks by token, timers.

Nothing here blocks, and no callback may. A token stands for a registration, not for an fd: the
fd may be closed long before its file is (kernel.epoll).
"""

from __future__ import annotations

import heapq
import itertools
import logging
import time
from collections.abc import Callable

from slim.broker.kernel.epoll import EPOLLIN, Epoll

log = logging.getLogger(__name__)

OnEvent = Callable[[int], None]
"""Called with the epoll events."""


class Timer:
    """A callback that will run once, unless it is cancelled."""

    __slots__ = ("callback",)

    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        self.callback = None


class Loop:
    """Owns its epoll set; borrows every fd given to it."""

    def __init__(self) -> None:
        self._epoll = Epoll(max_events=256)
        self._tokens = itertools.count(1)
        self._callbacks: dict[int, OnEvent] = {}
        self._timers: list[tuple[float, int, Timer]] = []
        self._sequence = itertools.count()
        self._running = False

    def watch(self, fd: int, callback: OnEvent, events: int = EPOLLIN) -> int:
        """Call back whenever the file is ready; gives the token for `forget`."""
        token = next(self._tokens)
        self._epoll.add(fd, events, token)
        self._callbacks[token] = callback
        return token

    def rearm(self, fd: int, token: int, events: int) -> None:
        """Arm a one-shot registration again; the fd number must be the one it was made with."""
        self._epoll.modify(fd, events, token)

    def unwatch(self, fd: int, token: int) -> None:
        """End a registration whose fd is still open."""
        self._callbacks.pop(token, None)
        self._epoll.remove(fd)

    def forget(self, token: int) -> None:
        """Drop the callback only; the registration goes with its file."""
        self._callbacks.pop(token, None)

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Timer:
        timer = Timer(callback)
        deadline = time.monotonic() + delay_s
        heapq.heappush(self._timers, (deadline, next(self._sequence), timer))
        return timer

    def run(self) -> None:
        """Serve until `stop`."""
        self._running = True
        callbacks = self._callbacks
        while self._running:
            for token, events in self._epoll.wait(self._timeout_ms()):
                callback = callbacks.get(token)
                if callback is not None:
                    _run(callback, events)
            self._run_timers()

    def stop(self) -> None:
        self._running = False

    def _timeout_ms(self) -> int:
        while self._timers and self._timers[0][2].callback is None:
            heapq.heappop(self._timers)
        if not self._timers:
            return -1
        # Rounded up: a timer that is due in 0.3 ms must not be polled for in between.
        return max(0, int((self._timers[0][0] - time.monotonic()) * 1000) + 1)

    def _run_timers(self) -> None:
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            callback = heapq.heappop(self._timers)[2].callback
            if callback is not None:
                _run(callback)


def _run(callback: Callable[..., None], *arguments: int) -> None:
    """One container's trouble must not end the supervision of all the others."""
    try:
        callback(*arguments)
    except Exception:
        log.exception("an event was not handled")
