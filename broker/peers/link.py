"""One channel between two slimds: Hello both ways, then questions, answers and news.

A link belongs to the event loop of control. What the peer says is checked against its
certificate here, so that whoever handles a message need not ask where it came from.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from slim.broker.endpoints import Address, from_packed16
from slim.broker.errors import ControlError
from slim.broker.peers import frames, messages, pki

if TYPE_CHECKING:
    from collections.abc import Callable

    from slim.broker.endpoints import Network

log = logging.getLogger(__name__)

HELLO_LIMIT_S = 5.0
PING_EVERY_S = 10.0
PINGS_MISSED = 3
MAX_OUTPUT = 4 << 20
"""Bytes that a peer may leave unread before it is dropped."""
MAX_QUESTIONS = 1024
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
    """What control does with what peers say."""

    async def resolve(
        self, peer: PeerInfo, message: messages.Resolve
    ) -> messages.ResolveAnswer: ...
    def key(self, peer: PeerInfo, message: messages.Key) -> None: ...
    def invalidate(self, peer: PeerInfo, message: messages.Invalidate) -> None: ...
    def connected(self, peer: PeerInfo) -> None: ...
    def disconnected(self, peer: PeerInfo) -> None: ...


class Link:
    """An open channel; owns its stream."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        dialled: bool,
        handler: PeerHandler,
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._handler = handler
        self._decoder = frames.FrameDecoder()
        self._tokens = itertools.count(1)
        self._questions: dict[int, asyncio.Future[messages.ResolveAnswer]] = {}
        self._answering: set[asyncio.Task[None]] = set()
        self._unanswered_pings = 0
        self._ping_sent = 0.0
        self._backlog: list[messages.AnyPeerMessage] = []
        self.dialled = dialled
        self.since = time.monotonic()
        self.rtt_ms = 0.0
        self.info: PeerInfo
        """Set by `greet`."""

    # --- life ---------------------------------------------------------------------------------

    async def greet(self, hello: messages.Hello) -> PeerInfo:
        """Exchange Hello; ConnectionError or TimeoutError when the peer is not one of ours."""
        self.send(hello)
        first = await asyncio.wait_for(self._next(), HELLO_LIMIT_S)
        if not isinstance(first, messages.Hello):
            raise frames.FrameError(f"{type(first).__name__} instead of Hello")
        if first.protocol != messages.PROTOCOL:
            raise frames.FrameError(
                f"peer speaks protocol {first.protocol}, this slimd {messages.PROTOCOL}"
            )
        der = self._writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        try:
            identity = pki.identity_from_der(der or b"")
        except ValueError as error:
            raise frames.FrameError(f"peer's certificate: {error}") from None
        if identity.host != first.host:
            raise frames.FrameError(
                f"peer says it is {first.host!r}, its certificate {identity.host!r}"
            )
        if not 1 <= len(first.addresses) <= 16:
            raise frames.FrameError(f"Hello with {len(first.addresses)} addresses")
        self.info = PeerInfo(
            identity.host, identity.networks, tuple(first.addresses), tuple(first.features)
        )
        return self.info

    async def serve(self) -> None:
        """Handle messages until the channel ends; raises what ended it, if it was an error."""
        pings = asyncio.create_task(self._ping())
        try:
            while True:
                self._handle(await self._next())
        except EOFError:
            return
        finally:
            pings.cancel()
            self.close()

    def close(self) -> None:
        for question in self._questions.values():
            if not question.done():
                question.set_exception(ControlError(f"the channel to {self.host} ended"))
        self._questions.clear()
        for task in self._answering:
            task.cancel()
        # abort, not close: a peer that does not read must not keep us waiting.
        with contextlib.suppress(OSError, RuntimeError):
            self._writer.transport.abort()

    @property
    def host(self) -> str:
        return self.info.host if hasattr(self, "info") else "?"

    # --- sending ------------------------------------------------------------------------------

    def send(self, message: messages.AnyPeerMessage) -> bool:
        """Queue a message; a peer that lets the queue grow too long is dropped."""
        transport = self._writer.transport
        if transport.is_closing():
            return False
        if transport.get_write_buffer_size() > MAX_OUTPUT:
            log.warning("peer %s does not read; its channel is dropped", self.host)
            transport.abort()
            return False
        self._writer.write(frames.encode(message))
        return True

    async def ask(self, make: Callable[[int], messages.Resolve]) -> messages.ResolveAnswer:
        """Send a question and wait for its answer; ControlError when the channel ends first."""
        if len(self._questions) >= MAX_QUESTIONS:
            raise ControlError(f"{MAX_QUESTIONS} questions to {self.host} are open")
        token = next(self._tokens)
        asked = make(token)
        future: asyncio.Future[messages.ResolveAnswer] = asyncio.get_running_loop().create_future()
        self._questions[token] = future
        try:
            if not self.send(asked):
                raise ControlError(f"the channel to {self.host} is closed")
            answer = await future
        finally:
            self._questions.pop(token, None)
        if not self._speaks_for(asked.destination):
            log.warning(
                "peer %s answers for %s, which its certificate does not name",
                self.host,
                from_packed16(asked.destination),
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
            case messages.Ping():
                self.send(messages.Pong(message.token))
            case messages.Pong():
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
        if len(self._answering) >= MAX_QUESTIONS:
            raise frames.FrameError(f"more than {MAX_QUESTIONS} open questions")

        async def answer() -> None:
            self.send(await self._handler.resolve(self.info, message))

        task = asyncio.create_task(answer())
        self._answering.add(task)
        task.add_done_callback(self._answering.discard)

    def _speaks_for(self, packed: bytes) -> bool:
        address: Address = from_packed16(packed)
        return any(address in network for network in self.info.networks)

    async def _ping(self) -> None:
        for token in itertools.count(1):
            self._ping_sent = time.monotonic()
            if self._unanswered_pings >= PINGS_MISSED:
                log.warning("peer %s is silent; its channel is dropped", self.host)
                self._writer.transport.abort()
                return
            self._unanswered_pings += 1
            self.send(messages.Ping(token))
            await asyncio.sleep(PING_EVERY_S)
