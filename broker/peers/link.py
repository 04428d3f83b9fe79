"""One channel between two slimds: Hello both ways, then questions, answers and news.

A link belongs to the event loop of control. What the peer says is checked against its
certificate here, so that whoever handles a message need not ask where it came from.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import ipaddress
import itertools
import logging
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn, Protocol

import msgspec

from slim.broker.endpoints import from_packed16, packed16, unmapped
from slim.broker.errors import ControlError
from slim.broker.peers import frames, identity, messages, pki

if TYPE_CHECKING:
    from collections.abc import Callable

    from slim.broker.endpoints import Endpoint, Network
    from slim.broker.peers.streams import Stream

log = logging.getLogger(__name__)

HELLO_LIMIT_S = 5.0
PING_EVERY_S = 10.0
PINGS_MISSED = 3
MAX_OUTPUT = 4 << 20
"""Bytes that a peer may leave unread before it is dropped."""
MAX_QUESTIONS = 1024
MAX_ADDRESSES = 16
READ_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class PeerInfo:
    """Who is at the other end, by certificate and Hello."""

    host: str
    networks: tuple[Network, ...]
    addresses: tuple[bytes, ...]
    """Announced host addresses, packed: where its host connections come from."""
    features: tuple[str, ...]


class PeerHandler(Protocol):
    """What control does with what peers say.

    `connected` may come again for a host without `disconnected` before it: its channel was
    replaced by another.
    """

    async def resolve(
        self, peer: PeerInfo, message: messages.Resolve
    ) -> messages.ResolveAnswer: ...
    def key(self, peer: PeerInfo, message: messages.Key) -> None: ...
    def invalidate(self, peer: PeerInfo, message: messages.Invalidate) -> None: ...
    def policy_changed(self, peer: PeerInfo) -> None: ...
    def relabelled(self, peer: PeerInfo, message: messages.Relabelled) -> None: ...
    def cut(self, peer: PeerInfo, message: messages.Cut) -> None: ...
    def pace(self, peer: PeerInfo, message: messages.Pace) -> None: ...
    def connected(self, peer: PeerInfo) -> None: ...
    def disconnected(self, peer: PeerInfo, why: str) -> None: ...
    def failed(self, endpoint: Endpoint, why: str) -> None: ...


class Link:
    """An open channel; owns its stream."""

    def __init__(self, stream: Stream, *, dialled: bool, handler: PeerHandler) -> None:
        self._reader, self._writer = stream
        self._handler = handler
        self._decoder = frames.FrameDecoder()
        self._tokens = itertools.count(1)
        self._questions: dict[int, asyncio.Future[messages.ResolveAnswer]] = {}
        self._answering: set[asyncio.Task[messages.ResolveAnswer]] = set()
        self._unanswered_pings = 0
        self._ping_sent = 0.0
        self._ping_token = 0
        self._backlog: list[messages.AnyPeerMessage] = []
        self._why_ended = "closed by the peer"
        self._warned: set[str] = set()
        self.dialled = dialled
        self.since = time.monotonic()
        self.rtt_ms = 0.0
        self.counters: Counter[str] = Counter()
        self.info: PeerInfo
        self.identity: pki.HostIdentity
        """Both set by `greet`."""

    # --- life ---------------------------------------------------------------------------------

    async def greet(self, hello: messages.Hello) -> PeerInfo:
        """Exchange Hello; ConnectionError or TimeoutError when the peer is not one of ours."""
        self.send(hello)
        try:
            async with asyncio.timeout(HELLO_LIMIT_S):
                first = await self._next()
        except EOFError:
            raise ConnectionError("closed by the peer before its Hello") from None
        if not isinstance(first, messages.Hello):
            raise frames.FrameError(f"{type(first).__name__} instead of Hello")
        if first.protocol != messages.PROTOCOL:
            raise frames.FrameError(
                f"peer speaks protocol {first.protocol}, this slimd {messages.PROTOCOL}"
            )
        tls = self._writer.get_extra_info("ssl_object")
        if tls.selected_alpn_protocol() != pki.ALPN:
            raise frames.FrameError(f"peer does not speak {pki.ALPN}")
        try:
            self.identity = pki.identity_from_der(tls.getpeercert(binary_form=True) or b"")
        except ValueError as error:
            raise frames.FrameError(f"peer's certificate: {error}") from None
        if self.identity.host != first.host:
            raise frames.FrameError(
                f"peer says it is {first.host!r}, its certificate {self.identity.host!r}"
            )
        if first.host == hello.host:
            raise frames.FrameError(f"the other end is {hello.host!r} too, as this host")
        if not 1 <= len(first.addresses) <= MAX_ADDRESSES:
            raise frames.FrameError(f"Hello with {len(first.addresses)} addresses")
        self.info = PeerInfo(
            first.host, self.identity.networks, tuple(first.addresses), tuple(first.features)
        )
        self._compare_address()
        return self.info

    def _compare_address(self) -> None:
        name = self._writer.get_extra_info("peername")
        if name is None:
            return
        address = unmapped(ipaddress.ip_address(name[0].partition("%")[0]))
        if packed16(address) not in self.info.addresses:
            log.warning(
                "peer %s is at %s, which is not among the addresses it announces: if its host "
                "connections come from there too, they will be refused",
                self.host,
                address,
            )

    async def serve(self) -> NoReturn:
        """Handle messages until the channel ends; raises what ended it, a ConnectionError."""
        pings = asyncio.create_task(self._ping())
        try:
            while True:
                self._handle(await self._next())
        except EOFError:
            raise ConnectionError(self._why_ended) from None
        finally:
            pings.cancel()
            self.close()

    def close(self) -> None:
        """End at once: a peer that does not read must not keep us waiting."""
        self._fail_questions()
        with contextlib.suppress(OSError, RuntimeError):
            self._writer.transport.abort()

    def refuse(self) -> None:
        """End in good order, so that the peer has our Hello and knows who did not want it."""
        self._fail_questions()
        with contextlib.suppress(OSError, RuntimeError):
            self._writer.close()

    def _fail_questions(self) -> None:
        for question in self._questions.values():
            if not question.done():
                question.set_exception(ControlError(f"the channel to {self.host} ended"))
        self._questions.clear()
        for task in self._answering:
            task.cancel()

    @property
    def host(self) -> str:
        return self.info.host if hasattr(self, "info") else "?"

    @property
    def age_s(self) -> float:
        return time.monotonic() - self.since

    def is_closed(self) -> bool:
        return self._writer.transport.is_closing()

    # --- sending ------------------------------------------------------------------------------

    def send(self, message: messages.AnyPeerMessage) -> bool:
        """Queue a message; a peer that lets the queue grow too long is dropped.

        ValueError if the peer would not take the message.
        """
        frame = frames.encode(message)
        if self.is_closed():
            return False
        if self._writer.transport.get_write_buffer_size() > MAX_OUTPUT:
            self._drop("it does not read")
            return False
        self._writer.write(frame)
        return True

    async def ask(self, make: Callable[[int], messages.Resolve]) -> messages.ResolveAnswer:
        """Send a question and wait for its answer; ControlError when the channel ends first.

        What the peer is not in charge of it is not asked, nor believed: ResolvedUnknown.
        """
        if len(self._questions) >= MAX_QUESTIONS:
            raise ControlError(f"{MAX_QUESTIONS} questions to {self.host} are open")
        token = next(self._tokens)
        asked = make(token)
        if not self._speaks_for(asked.destination):
            self._warn(
                "asked",
                f"its certificate does not name {from_packed16(asked.destination)}, so it is not "
                "asked about it",
            )
            return messages.ResolvedUnknown(token)
        future: asyncio.Future[messages.ResolveAnswer] = asyncio.get_running_loop().create_future()
        self._questions[token] = future
        try:
            if not self.send(asked):
                raise ControlError(f"the channel to {self.host} is closed")
            self.counters["questions_asked"] += 1
            answer = await future
        except ValueError as error:
            raise ControlError(f"not to be asked of {self.host}: {error}") from None
        finally:
            self._questions.pop(token, None)
        if (
            isinstance(answer, messages.ResolvedFast)
            and answer.host_address not in self.info.addresses
        ):
            self._warn(
                "answered",
                f"it did not announce the address {from_packed16(answer.host_address)} that it "
                "answers with",
            )
            return messages.ResolvedUnknown(token)
        return answer

    # --- receiving ----------------------------------------------------------------------------

    async def _next(self) -> messages.AnyPeerMessage:
        while not self._backlog:
            data = await self._reader.read(READ_BYTES)
            if not data:
                raise EOFError
            self._backlog = self._decoder.feed(data)[::-1]
        return self._backlog.pop()

    def _handle(self, message: messages.AnyPeerMessage) -> None:
        match message:
            case messages.Resolve():
                self._answer(message)
            case (
                messages.ResolvedFast()
                | messages.ResolvedOverlay()
                | messages.ResolvedDenied()
                | messages.ResolvedUnknown()
            ):
                question = self._questions.get(message.token)
                if question is not None and not question.done():
                    question.set_result(message)
            case messages.Key():
                self._handler.key(self.info, message)
            case messages.Invalidate():
                self._handler.invalidate(self.info, message)
            case messages.PolicyChanged():
                self._handler.policy_changed(self.info)
            case messages.Relabelled():
                if not self._speaks_for(message.source):
                    raise frames.FrameError(
                        f"labels of {from_packed16(message.source)}, which the certificate of "
                        f"{self.host} does not name"
                    )
                self._handler.relabelled(self.info, message)
            case messages.Cut():
                self._handler.cut(self.info, message)
            case messages.Pace():
                self._handler.pace(self.info, message)
            case messages.Ping():
                self.send(messages.Pong(message.token))
            case messages.Pong():
                if message.token == self._ping_token:
                    self._unanswered_pings = 0
                    self.rtt_ms = (time.monotonic() - self._ping_sent) * 1000
            case messages.Hello():
                raise frames.FrameError("a second Hello")

    def _answer(self, message: messages.Resolve) -> None:
        if not self._speaks_for(message.source):
            raise frames.FrameError(
                f"question from {from_packed16(message.source)}, which the certificate of "
                f"{self.host} does not name"
            )
        self.counters["questions_received"] += 1
        if len(self._answering) >= MAX_QUESTIONS:
            # An honest peer may get here: it gives questions up that we still work on.
            self.counters["questions_refused"] += 1
            self.send(messages.ResolvedUnknown(message.token))
            return
        task = asyncio.create_task(self._handler.resolve(self.info, message))
        self._answering.add(task)
        task.add_done_callback(functools.partial(self._answered, message.token))

    def _answered(self, token: int, task: asyncio.Task[messages.ResolveAnswer]) -> None:
        self._answering.discard(task)
        if task.cancelled():
            return
        error = task.exception()
        if error is None:
            try:
                self.send(_presentable(task.result()))
            except ValueError as unfit:
                error = unfit
        if error is not None:
            log.error("a question of %s has no answer", self.host, exc_info=error)
            self.send(messages.ResolvedUnknown(token))

    def _speaks_for(self, packed: bytes) -> bool:
        return self.identity.speaks_for(from_packed16(packed))

    # --- watching -----------------------------------------------------------------------------

    async def _ping(self) -> None:
        while self._unanswered_pings < PINGS_MISSED:
            if identity.now() >= self.identity.not_after:
                self._drop("its certificate expired")
                return
            self._unanswered_pings += 1
            self._ping_token += 1
            self._ping_sent = time.monotonic()
            self.send(messages.Ping(self._ping_token))
            await asyncio.sleep(PING_EVERY_S)
        self._drop(f"it left {PINGS_MISSED} pings unanswered")

    def _drop(self, why: str) -> None:
        self._why_ended = why
        log.warning("the channel to %s is dropped: %s", self.host, why)
        self._writer.transport.abort()

    def _warn(self, kind: str, text: str) -> None:
        """Say it once for each channel: a peer decides how often it happens."""
        self.counters["answers_not_believed"] += 1
        if kind not in self._warned:
            self._warned.add(kind)
            log.warning("peer %s: %s", self.host, text)


def _presentable(answer: messages.ResolveAnswer) -> messages.ResolveAnswer:
    """The answer with what people will read of it in a form that the peer takes."""
    match answer:
        case messages.ResolvedFast() | messages.ResolvedDenied():
            return msgspec.structs.replace(answer, rule=frames.presentable(answer.rule))
        case messages.ResolvedOverlay():
            return msgspec.structs.replace(
                answer,
                reason=frames.presentable(answer.reason),
                rule=frames.presentable(answer.rule),
            )
        case messages.ResolvedUnknown():
            return answer
