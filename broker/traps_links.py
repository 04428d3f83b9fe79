"""The two links of traps: questions and news to control, things to keep to the keeper.

Control may come and go: while it is away every question is answered at once by the overlay, if
that is lawful; if nothing is, the question waits a while for the successor. A link that would block
is dropped and made anew; everything control must know is announced again then.
"""

from __future__ import annotations

import itertools
import logging
import os
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from slim.broker.endpoints import Endpoint, from_packed16, packed16
from slim.broker.flows import DeniedFlow, FastFlow, Flow, FlowKey, OverlayFlow
from slim.broker.local import messages, seqpacket

if TYPE_CHECKING:
    from collections.abc import Callable

    from slim.broker.context import TrapContext
    from slim.broker.listeners import ListenerRecord
    from slim.broker.loop import Timer

log = logging.getLogger(__name__)

RECONNECT_S = 0.2
QUESTION_LIMIT_S = 10.0
VERDICT_LIMIT_S = 5.0
"""How long a call waits that may not use the overlay: a slimd that is started again answers in
time, and a program is held no longer than by a lost SYN or two."""
_to_traps: msgspec.msgpack.Decoder[messages.ToTraps] = msgspec.msgpack.Decoder(messages.ToTraps)
_from_keeper: msgspec.msgpack.Decoder[messages.KeeperAnswer] = msgspec.msgpack.Decoder(
    messages.KeeperAnswer
)


@dataclass(slots=True)
class Question:
    """A LookUp on its way, and everybody who waits for the answer."""

    key: FlowKey
    look_up: messages.LookUp
    callbacks: list[Callable[[Flow], None]] = field(default_factory=list)
    timer: Timer | None = None


class Control:
    """The link to control; implements context.ControlLink."""

    def __init__(
        self, path: str, on_message: Callable[[messages.ToTraps, list[int]], None]
    ) -> None:
        self._path = path
        self._on_message = on_message
        self._channel: seqpacket.Channel[messages.ToTraps] | None = None
        self._watch = 0
        self._tokens = itertools.count(1)
        self._questions: dict[int, Question] = {}
        self._by_key: dict[FlowKey, Question] = {}
        self.context: TrapContext
        self.list_containers: Callable[[], tuple[list[str], list[int]]]
        """Names of the containers, and cookies of the workloads without one. Both are set once,
        before start()."""

    def start(self) -> None:
        """Connect, now or as soon as control is there."""
        try:
            sock = seqpacket.connect(self._path)
        except OSError:
            self.context.loop.call_later(RECONNECT_S, self.start)
            return
        sock.setblocking(False)
        self._channel = seqpacket.Channel(sock, _to_traps)
        self._watch = self.context.loop.watch(sock.fileno(), lambda _: self._receive())
        containers, idle = self.list_containers()
        self.send(messages.TrapsHello(messages.PROTOCOL, os.getpid(), containers, idle))
        for listener in self.context.listeners:
            self.listener_up(listener)
        for question in [*self._questions.values()]:
            self.send(question.look_up)

    def send(self, message: messages.ToControl) -> bool:
        if self._channel is None:
            return False
        try:
            self._channel.send(message)
        except OSError as error:
            log.warning("control does not take %s: %s", type(message).__name__, error)
            self._disconnect()
            return False
        return True

    # --- questions ----------------------------------------------------------------------------

    def ask(
        self, key: FlowKey, pid: int, on_answer: Callable[[Flow], None], *, retry: bool
    ) -> None:
        """Ask once per key at a time; `on_answer` is called within the resolve budget.

        Where only a verdict will do: within VERDICT_LIMIT_S.
        """
        question = self._by_key.get(key)
        if question is None:
            look_up = messages.LookUp(
                next(self._tokens),
                key.workload,
                packed16(key.source) if key.source is not None else None,
                packed16(key.destination.address),
                key.destination.port,
                pid,
                retry,
            )
            if not self.send(look_up) and self._may_use_overlay(key):
                on_answer(self._without_control(key, "control-down"))
                return
            question = Question(key, look_up)
            self._questions[look_up.token] = self._by_key[key] = question
        question.callbacks.append(on_answer)
        if question.timer is None:
            budget = self.context.settings.resolve_budget_ms / 1000
            limit = budget if self._may_use_overlay(key) else VERDICT_LIMIT_S
            question.timer = self.context.loop.call_later(limit, lambda: self._expire(question))

    def _expire(self, question: Question) -> None:
        """The budget is spent: the callers go on, the question stays, for the next ones."""
        question.timer = None
        self.context.counters["resolve_budget_spent"] += 1
        self.context.loop.call_later(QUESTION_LIMIT_S, lambda: self._abandon(question))
        self._answer(question, self._without_control(question.key, "resolve-budget"))

    def _abandon(self, question: Question) -> None:
        """An answer that comes so late never comes; the next caller asks anew."""
        if self._questions.pop(question.look_up.token, None) is not None:
            del self._by_key[question.key]
            self._answer(question, self._without_control(question.key, "resolve-budget"))

    def drop_workload(self, workload: int) -> None:
        """The workload is gone; one that comes in the same namespace is judged anew."""
        for key in [key for key in self._by_key if key.workload == workload]:
            question = self._by_key.pop(key)
            self._questions.pop(question.look_up.token, None)
            self._answer(question, self._without_control(key, "workload-gone"))

    def _may_use_overlay(self, key: FlowKey) -> bool:
        """Whether no verdict is needed: policy does not isolate the workload."""
        workload = self.context.workloads.get(key.workload)
        return workload is not None and not workload.state.isolated_egress

    def _without_control(self, key: FlowKey, reason: str) -> Flow:
        if self._may_use_overlay(key):
            return OverlayFlow(reason, "", 0)
        return DeniedFlow(self.context.settings.deny_errno, f"verdict not known: {reason}", 0)

    def _answer(self, question: Question, flow: Flow) -> None:
        callbacks, question.callbacks = question.callbacks, []
        if question.timer is not None:
            question.timer.cancel()
            question.timer = None
        for callback in callbacks:
            callback(flow)

    def on_flow(
        self, message: messages.FlowFast | messages.FlowOverlay | messages.FlowDenied
    ) -> None:
        """An answer arrived, in time or not."""
        question = self._questions.pop(message.token, None)
        if question is None:
            return
        del self._by_key[question.key]
        flow = _flow_of(message)
        self.context.flows.put(question.key, flow)
        self._answer(question, flow)

    # --- news ---------------------------------------------------------------------------------

    def listener_up(self, listener: ListenerRecord) -> None:
        self.send(
            messages.ListenerUp(
                listener.workload,
                listener.address,
                listener.dual_stack,
                listener.port,
                listener.host_address,
                listener.host_port,
                listener.cookie,
            )
        )

    def listener_gone(self, workload: int, cookie: int) -> None:
        self.send(messages.ListenerGone(workload, cookie))

    def path_failed(self, peer: str, host: Endpoint, errno: int) -> None:
        self.send(messages.PathFailed(peer, packed16(host.address), host.port, errno))

    # --- the connection -----------------------------------------------------------------------

    def _receive(self) -> None:
        channel = self._channel
        if channel is None:
            return
        try:
            message, fds = channel.receive()
        except BlockingIOError:
            return
        except seqpacket.FdsLost as lost:
            # Whoever asked hears that an fd is missing.
            message, fds = lost.message, []
        except (OSError, EOFError) as error:
            log.info("control is away: %s", error)
            self._disconnect()
            return
        self._on_message(message, fds)

    def _disconnect(self) -> None:
        if self._channel is None:
            return
        self.context.loop.unwatch(self._channel.fileno(), self._watch)
        self._channel.close()
        self._channel = None
        for question in [*self._questions.values()]:
            if self._may_use_overlay(question.key):
                del self._questions[question.look_up.token], self._by_key[question.key]
                self._answer(question, self._without_control(question.key, "control-down"))
        self.context.loop.call_later(RECONNECT_S, self.start)


def _flow_of(message: messages.FlowFast | messages.FlowOverlay | messages.FlowDenied) -> Flow:
    expires = time.monotonic() + message.lifetime_ms / 1000
    if isinstance(message, messages.FlowFast):
        return FastFlow(
            source=from_packed16(message.source),
            host=Endpoint(from_packed16(message.host_address), message.host_port),
            flow=message.flow,
            peer=message.peer,
            fallback_lawful=message.fallback_lawful,
            rule=message.rule,
            expires_s=expires,
            shaping=message.shaping,
            peer_rate=message.peer_rate,
        )
    if isinstance(message, messages.FlowOverlay):
        return OverlayFlow(message.reason, message.rule, expires, message.shaping)
    return DeniedFlow(message.errno, message.rule, expires)


class KeeperGone(Exception):
    """The keeper ended: on purpose, and everything ends with it."""


class Keeper:
    """The link to the keeper; implements context.KeeperLink.

    Its sends block: the keeper does nothing but take and give, and never waits for traps.
    """

    def __init__(self, path: str) -> None:
        self._channel = seqpacket.Channel(seqpacket.connect(path), _from_keeper)
        self._tokens = itertools.count(1)
        self._on_done: dict[int, Callable[[], None]] = {}

    def fileno(self) -> int:
        return self._channel.fileno()

    def fetch(self, prefix: str) -> list[tuple[str, bytes, list[int]]]:
        """Everything kept under names that start so; the caller owns the fds. Blocks."""
        self._channel.send(messages.Fetch(next(self._tokens), prefix))
        found: list[tuple[str, bytes, list[int]]] = []
        while True:
            message, fds = self._channel.receive()
            if isinstance(message, messages.HeldEnd):
                return found
            if isinstance(message, messages.Held):
                found.append((message.name, message.meta, fds))

    def store(self, name: str, meta: bytes, fds: tuple[int, ...]) -> None:
        """Keep these under the name; borrows the fds, the keeper has duplicates."""
        self._channel.send(messages.Store(next(self._tokens), name, meta), fds)

    def drop(self, name: str, on_done: Callable[[], None] | None = None) -> None:
        """Forget the name; `on_done` once the keeper's copies are closed."""
        token = next(self._tokens)
        if on_done is not None:
            self._on_done[token] = on_done
        self._channel.send(messages.Drop(token, [name]))

    def receive(self) -> None:
        """One answer; KeeperGone when there will be none."""
        try:
            message, _ = self._channel.receive()
        except (OSError, EOFError) as error:
            raise KeeperGone(str(error)) from None
        if isinstance(message, messages.Done):
            if message.error:
                log.error("keeper: %s", message.error)
            on_done = self._on_done.pop(message.token, None)
            if on_done is not None:
                on_done()
