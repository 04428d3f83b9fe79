"""Host connections whose record is not complete yet: bounded in number, each with a deadline.

parked --bytes or the end came--> examined --still incomplete--> parked, with a new deadline
       --deadline, or too many--> silent: refused
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from slim.broker.kernel.epoll import EPOLLIN, EPOLLRDHUP

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from slim.broker.accept_state import AcceptState, Parked
    from slim.broker.loop import Loop

PARK_LIMIT = 256
"""Of one listener; one more, and the one that was parked first is silent."""
PARK_DEADLINE_S = 2.0


class Parking:
    """Watches parked connections; the sockets stay those of the states they are parked in."""

    def __init__(
        self,
        loop: Loop,
        on_readable: Callable[[AcceptState, Parked], None],
        on_silent: Callable[[socket.socket], None],
    ) -> None:
        """Both callbacks take the connection over, which is parked no more."""
        self._loop = loop
        self._on_readable = on_readable
        self._on_silent = on_silent

    def park(self, state: AcceptState, parked: Parked) -> None:
        """Wait for the rest of its record; takes the connection."""
        if parked.token:
            return
        if len(state.parked) >= PARK_LIMIT:
            self._give_up(state, state.parked[0])
        state.parked.append(parked)
        parked.token = self._loop.watch(
            parked.sock.fileno(), lambda _: self._look(state, parked), EPOLLIN | EPOLLRDHUP
        )
        parked.timer = self._loop.call_later(PARK_DEADLINE_S, lambda: self._give_up(state, parked))

    def leave(self, state: AcceptState, parked: Parked) -> None:
        """Stop waiting; the connection is the caller's again."""
        state.parked.remove(parked)
        if parked.timer is not None:
            parked.timer.cancel()
        self._loop.unwatch(parked.sock.fileno(), parked.token)
        parked.token = 0

    def _look(self, state: AcceptState, parked: Parked) -> None:
        self.leave(state, parked)
        self._on_readable(state, parked)

    def _give_up(self, state: AcceptState, parked: Parked) -> None:
        self.leave(state, parked)
        self._on_silent(parked.sock)
