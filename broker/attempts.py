"""Blocking connects that are held: from the swap until the result was delivered.

    hold -> handshake done -> delivered (0)
                           -> nobody there: a signal; the call comes again and joins -> delivered
         -> refused, budget spent -> somebody held: on_failure finds another way
                                  -> nobody there: the program finds it in SO_ERROR

The held call waits interruptibly: after a signal the program may issue it again, as a new
notification, which joins the attempt and gets its result, 0 and not EISCONN.
"""

from __future__ import annotations

import errno
import socket
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from slim.broker.errors import TargetGone
from slim.broker.kernel import sockaddr
from slim.broker.kernel.epoll import EPOLLERR, EPOLLOUT
from slim.broker.kernel.socket_options import TCP_ESTABLISHED, tcp_state, timeout_s

if TYPE_CHECKING:
    from collections.abc import Callable

    from slim.broker.context import TrapContext
    from slim.broker.flows import FastFlow, FlowKey
    from slim.broker.loop import Timer
    from slim.broker.supervisor import PendingCall

KEEP_RESULT_S = 30.0
"""How long an interrupted call may take to come again."""
MAX_HELD = 1024
"""Of one workload at a time. Each is an fd of ours, and thousands of threads may connect to an
address that nobody answers at; what comes beyond goes over the overlay."""


@dataclass(slots=True, eq=False)
class Attempt:
    """One blocking connect on a host socket. Owns `sock`, our duplicate, until it ends."""

    sock: socket.socket
    cookie: int
    fd: int
    domain: int
    key: FlowKey
    flow: FastFlow
    bound_port: int
    waiting: list[PendingCall]
    is_second: bool
    epoch: int
    """Of the policy that `flow` was made under (context.TrapContext.epoch)."""
    token: int = 0
    timers: list[Timer] = field(default_factory=list)
    unsent: bytes = b""
    """The record, if fast open is off: sent as soon as the handshake is done."""
    result: int | None = None
    """0 or an errno, once known."""


class Attempts:
    """All blocking connects that wait, by the host socket's cookie."""

    def __init__(
        self,
        context: TrapContext,
        on_path_failed: Callable[[FastFlow, FlowKey, int], None],
        on_failure: Callable[[Attempt, PendingCall, int], None],
    ) -> None:
        self._context = context
        self._on_path_failed = on_path_failed
        self._on_failure = on_failure
        self._attempts: dict[int, Attempt] = {}
        self._held: Counter[int] = Counter()
        """Sockets in the loop, by workload."""

    def is_full(self, workload: int) -> bool:
        """Whether the workload may have no more connects held now."""
        return self._held[workload] >= MAX_HELD

    def find(self, cookie: int) -> Attempt | None:
        return self._attempts.get(cookie)

    def join(self, attempt: Attempt, call: PendingCall, *, nonblocking: bool) -> None:
        """connect() again on the attempt's socket: its result, EALREADY, or wait with it."""
        if attempt.result is not None:
            self._forget(attempt)
            call.fail(attempt.result)
        elif nonblocking:
            call.fail(errno.EALREADY)
        else:
            attempt.waiting.append(call)
            limit = timeout_s(attempt.sock, socket.SO_SNDTIMEO)
            if limit is not None:
                attempt.timers.append(
                    self._context.loop.call_later(limit, lambda: _give_up(attempt, call))
                )

    def hold(self, attempt: Attempt) -> None:
        """Wait for the handshake; takes the attempt and its socket."""
        if tcp_state(attempt.sock) == TCP_ESTABLISHED:
            self._established(attempt)
            return
        loop = self._context.loop
        self._attempts[attempt.cookie] = attempt
        self._held[attempt.key.workload] += 1
        attempt.token = loop.watch(
            attempt.sock.fileno(), lambda events: self._on_event(attempt, events), EPOLLOUT
        )
        limit = timeout_s(attempt.sock, socket.SO_SNDTIMEO)
        if limit is not None:
            attempt.timers.append(loop.call_later(limit, lambda: self._timed_out(attempt)))
        budget = self._context.settings.connect_budget_ms / 1000
        attempt.timers.append(
            loop.call_later(budget, lambda: self._failed(attempt, errno.ETIMEDOUT))
        )

    def _on_event(self, attempt: Attempt, events: int) -> None:
        code = attempt.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code == 0 and not events & EPOLLERR:
            self._established(attempt)
        else:
            self._failed(attempt, code or errno.ECONNREFUSED)

    def _established(self, attempt: Attempt) -> None:
        if attempt.unsent:
            try:
                # The send buffer of a new connection always has room for 80 bytes.
                attempt.sock.send(attempt.unsent, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            except OSError as error:
                # Reset again before the record was out.
                self._failed(attempt, error.errno or errno.ECONNRESET)
                return
        waiting = next((call for call in attempt.waiting if call.is_valid()), None)
        if waiting is not None:
            # Connected once, connect() gives EISCONN: a successor must know that nobody was told.
            self._context.hand.answer(waiting, 0)
        # The kernel's own second connect() moves the socket from connecting to connected, so
        # that the program's next one is EISCONN, as after a connect of its own.
        attempt.sock.connect_ex(sockaddr.for_python(attempt.flow.host, attempt.domain))
        self._end(attempt, 0)
        self._context.hand.nothing()

    def _timed_out(self, attempt: Attempt) -> None:
        """SO_SNDTIMEO: EINPROGRESS for the caller, while the handshake goes on (socket(7))."""
        for call in _take_waiting(attempt):
            answer(call, errno.EINPROGRESS)

    def _failed(self, attempt: Attempt, code: int) -> None:
        self._on_path_failed(attempt.flow, attempt.key, code)
        call = next((call for call in attempt.waiting if call.is_valid()), None)
        if call is None or attempt.result is not None:
            # Nobody is held: the program owns the socket and finds the refusal in SO_ERROR.
            self._end(attempt, code)
            return
        self._detach(attempt)
        for other in _take_waiting(attempt):
            if other is not call:
                answer(other, code)
        self._on_failure(attempt, call, code)

    def _end(self, attempt: Attempt, result: int) -> None:
        self._detach(attempt)
        attempt.result = result
        delivered = False
        for call in _take_waiting(attempt):
            delivered = answer(call, result) or delivered
        if not delivered:
            # Interrupted: the restarted call gets the result, 0 and not EISCONN.
            self._attempts[attempt.cookie] = attempt
            attempt.timers.append(
                self._context.loop.call_later(KEEP_RESULT_S, lambda: self._forget(attempt))
            )

    def _detach(self, attempt: Attempt) -> None:
        self._attempts.pop(attempt.cookie, None)
        for timer in attempt.timers:
            timer.cancel()
        attempt.timers.clear()
        if attempt.token:
            self._context.loop.unwatch(attempt.sock.fileno(), attempt.token)
            attempt.token = 0
            self._held[attempt.key.workload] -= 1
            if not self._held[attempt.key.workload]:
                del self._held[attempt.key.workload]
        attempt.sock.close()

    def _forget(self, attempt: Attempt) -> None:
        self._attempts.pop(attempt.cookie, None)
        for timer in attempt.timers:
            timer.cancel()


def _give_up(attempt: Attempt, call: PendingCall) -> None:
    """SO_SNDTIMEO of a call that joined: EALREADY, while the handshake goes on (connect(2))."""
    if call in attempt.waiting:
        attempt.waiting.remove(call)
        answer(call, errno.EALREADY)


def _take_waiting(attempt: Attempt) -> list[PendingCall]:
    waiting, attempt.waiting = attempt.waiting, []
    return waiting


def answer(call: PendingCall, code: int) -> bool:
    """Answer if the caller is still there."""
    try:
        call.fail(code)
    except TargetGone:
        return False
    return True
