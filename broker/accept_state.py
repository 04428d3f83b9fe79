"""What waits on one listener: connections that are ready or half-way, programs that are held."""

from __future__ import annotations

import errno
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from slim.broker.errors import TargetGone

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from slim.broker.calls import Accept
    from slim.broker.endpoints import Address, Endpoint
    from slim.broker.listeners import ListenerRecord
    from slim.broker.loop import Timer
    from slim.broker.shaping import Shaping
    from slim.broker.supervisor import PendingCall


@dataclass(slots=True, eq=False)
class Ready:
    """A connection that may be given to the program. Owns `sock`."""

    sock: socket.socket
    peer: Endpoint
    """What the program is told."""
    local: Endpoint
    path: str
    reason: str
    rule: str
    peer_host: str
    host_peer: Endpoint | None
    number: int | None = None
    """Of the fd under which a program has it already, from a call that a signal ended before it
    could return."""
    flow: int = 0
    """The inbound flow that admitted it; 0 for a plain peer."""
    shaping: Shaping | None = None
    peer_rate: int | None = None


@dataclass(slots=True, eq=False)
class Parked:
    """A host connection whose record is incomplete. Owns `sock`."""

    sock: socket.socket
    address: Endpoint
    received: bytes
    token: int = 0
    timer: Timer | None = None


@dataclass(slots=True, eq=False)
class Waiter:
    """A blocking accept that is held."""

    call: PendingCall
    asked: Accept
    timer: Timer | None = None

    def fail(self, code: int) -> None:
        """Answer it, if it is still there."""
        if self.timer is not None:
            self.timer.cancel()
        try:
            self.call.fail(code)
        except TargetGone:
            return


@dataclass(slots=True, eq=False)
class AcceptState:
    """Everything that waits on one listener. Owns the retained overlay listener, if any."""

    listener: ListenerRecord
    retained: socket.socket | None
    retained_token: int = 0
    ready: deque[Ready] = field(default_factory=deque)
    parked: list[Parked] = field(default_factory=list)
    waiters: deque[Waiter] = field(default_factory=deque)
    watch_token: int = 0
    """Of the program's listener in our loop, without an fd of ours, once somebody was held."""
    wake: socket.socket | None = None
    retry: Timer | None = None

    def expire(self, waiter: Waiter) -> None:
        """SO_RCVTIMEO: EAGAIN (socket(7))."""
        if waiter in self.waiters:
            self.waiters.remove(waiter)
            waiter.fail(errno.EAGAIN)

    def drop_held(self, tid: int) -> None:
        """A thread is in one call at a time: the one it was held in before has ended."""
        for waiter in [waiter for waiter in self.waiters if waiter.call.tid == tid]:
            self.waiters.remove(waiter)
            if waiter.timer is not None:
                waiter.timer.cancel()

    def take_refused(
        self, workload: int, dropped: frozenset[int], admits: Callable[[int, Address], bool]
    ) -> list[Ready]:
        """Take out who came by a flow that was dropped, or as a plain peer no longer admitted."""
        refused = []
        for ready in [*self.ready]:
            if ready.number is not None:
                # The program has it already: it is on record, and cut by control.
                continue
            is_plain = ready.flow == 0 and self.listener.workload == workload
            if ready.flow in dropped or (is_plain and not admits(workload, ready.peer.address)):
                self.ready.remove(ready)
                refused.append(ready)
        return refused
