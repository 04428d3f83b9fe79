"""Finds the slimd of an overlay address through the overlay itself; needs no configuration.

Every slimd answers inside its workloads' namespaces on a reserved UDP port (`[discovery]
rendezvous_port`). A question is a datagram from the asking workload to the address in question:

    question  magic, version, nonce, the address; padded: no answer is longer than its question
    answer    statement (nonce, address, host, control endpoint, lifetime), certificate, signature

The signature is of the answering host's key over statement and certificate, and the certificate
must name a network that holds the address, so only a slimd in charge can answer, and only now. A
port unreachable, or silence, means that nobody brokers the address. A program that has the port
keeps it: its workload is then not found this way.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import ipaddress
import logging
import secrets
import struct
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, TypeAlias

import msgspec

from slim.broker.plugin_api import (
    Address,
    DiscoveryBackend,
    DiscoveryContext,
    Endpoint,
    Located,
    from_packed16,
    hookimpl,
    packed16,
)

if TYPE_CHECKING:
    import socket

log = logging.getLogger(__name__)

NAME = "rendezvous"
MAGIC = b"SLRV"
VERSION = 1
NONCE_BYTES = 16
QUESTION = struct.Struct("!4sB16s16s1163x")
"""Magic, version, nonce, address, and padding up to 1200 bytes, which fit any overlay's MTU."""
SIGNED = b"slim rendezvous answer 1\n"
"""Goes before what is signed, so that it can be mistaken for nothing else the key signs."""

LIFETIME_S = 10
REFUSED_LIFETIME_S = 10.0
SILENT_LIFETIME_S = 5.0
WAIT_S = 2.0
RESEND_AFTER_S = (0.015, 0.1, 0.4)
"""The first is within the budget of a trapped connect (20 ms)."""
MAX_ASKING = 512
MAX_BAD_ANSWERS = 16

ANSWERS_PER_S = 200.0
"""Per workload: signing takes time, and anybody on the overlay may ask."""
BURST = 50.0
READING_COST = 0.1
"""Of an answer's: what is not worth an answer still takes time to read."""
PAUSE_S = 0.05
NOT_YET_RETRY_S = 1.0
NOT_YET_TRIES = 5

_Packed: TypeAlias = Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]


class Statement(msgspec.Struct, frozen=True, array_like=True):
    """What is signed, with SIGNED before it and the certificate after it."""

    nonce: _Packed
    address: _Packed
    host: Annotated[str, msgspec.Meta(min_length=1, max_length=255)]
    control_address: _Packed
    control_port: Annotated[int, msgspec.Meta(ge=1, le=65535)]
    lifetime_s: Annotated[int, msgspec.Meta(ge=1)]


class Answer(msgspec.Struct, frozen=True, array_like=True):
    statement: bytes
    certificate: bytes
    signature: bytes


_encode = msgspec.msgpack.Encoder().encode
_decode_statement = msgspec.msgpack.Decoder(Statement).decode
_decode_answer = msgspec.msgpack.Decoder(Answer).decode


@dataclass(slots=True, eq=False)
class Answering:
    """One workload that can be asked about: its sockets, which it owns, and a token bucket."""

    sockets: dict[Address, socket.socket] = field(default_factory=dict)
    timers: dict[Address, asyncio.TimerHandle] = field(default_factory=dict)
    """Addresses that wait: to be bound again, or to be read again."""
    tokens: float = BURST
    refilled: float = field(default_factory=time.monotonic)

    def take(self, cost: float) -> None:
        self.tokens -= cost

    def has_tokens(self) -> bool:
        """Whether there are enough to read a question and to answer it."""
        now = time.monotonic()
        self.tokens = min(BURST, self.tokens + (now - self.refilled) * ANSWERS_PER_S)
        self.refilled = now
        return self.tokens >= 1 + READING_COST

    def drop(self, address: Address) -> None:
        timer = self.timers.pop(address, None)
        if timer is not None:
            timer.cancel()
        sock = self.sockets.pop(address, None)
        if sock is not None:
            asyncio.get_running_loop().remove_reader(sock)
            sock.close()


class Rendezvous:
    """The discovery backend; see slim.broker.discovery.DiscoveryBackend."""

    name = NAME

    def __init__(self, context: DiscoveryContext) -> None:
        self._context = context
        self._answering: dict[int, Answering] = {}
        self._asking: dict[tuple[int, Address], asyncio.Task[Located | None]] = {}
        self.counters: Counter[str] = Counter()

    def workload_added(self, workload: int, addresses: tuple[Address, ...]) -> None:
        if self._context.control is None:
            return
        answering = self._answering.setdefault(workload, Answering())
        for gone in {*answering.sockets, *answering.timers} - {*addresses}:
            answering.drop(gone)
        for address in addresses:
            if address not in answering.sockets and address not in answering.timers:
                self._listen(workload, address, NOT_YET_TRIES)

    def workload_removed(self, workload: int) -> None:
        answering = self._answering.pop(workload, None)
        if answering is not None:
            for address in {*answering.sockets, *answering.timers}:
                answering.drop(address)
        for (asker, _), task in self._asking.items():
            if asker == workload:
                task.cancel()

    def close(self) -> None:
        for workload in {*self._answering, *(asker for asker, _ in self._asking)}:
            self.workload_removed(workload)

    # --- answering

    def _listen(self, workload: int, address: Address, tries: int) -> None:
        answering = self._answering[workload]
        answering.timers.pop(address, None)
        port = self._context.rendezvous_port
        try:
            sock = self._context.udp_socket(workload, address, port)
        except (OSError, LookupError) as error:
            reason = getattr(error, "errno", None)
            if reason == errno.EADDRNOTAVAIL and tries > 1:
                # An IPv6 address cannot be bound while it is tentative (RFC 4862, 5.4).
                answering.timers[address] = asyncio.get_running_loop().call_later(
                    NOT_YET_RETRY_S, self._listen, workload, address, tries - 1
                )
            elif reason == errno.EADDRINUSE:
                log.warning("a program has %s udp port %d: no rendezvous there", address, port)
            else:
                log.warning("no rendezvous at %s udp port %d: %s", address, port, error)
            return
        answering.sockets[address] = sock
        self._read(answering, address)

    def _read(self, answering: Answering, address: Address) -> None:
        answering.timers.pop(address, None)
        sock = answering.sockets[address]
        asyncio.get_running_loop().add_reader(sock, self._on_question, answering, address)

    def _on_question(self, answering: Answering, address: Address) -> None:
        sock = answering.sockets[address]
        if not answering.has_tokens():
            # Not even read: a flood is the kernel's to drop.
            self.counters["throttled"] += 1
            loop = asyncio.get_running_loop()
            loop.remove_reader(sock)
            answering.timers[address] = loop.call_later(PAUSE_S, self._read, answering, address)
            return
        answering.take(READING_COST)
        # An error is one that an earlier answer met; reading it has cleared it.
        with contextlib.suppress(OSError):
            data, asker = sock.recvfrom(QUESTION.size + 1)
            nonce = _read_question(data, address)
            if nonce is None:
                self.counters["questions_ignored"] += 1
                return
            answering.take(1)
            answer = self._answer(nonce, address)
            if answer is not None:
                sock.sendto(answer, asker)
                self.counters["answered"] += 1

    def _answer(self, nonce: bytes, address: Address) -> bytes | None:
        context = self._context
        if context.control is None:
            return None
        control = context.control
        statement = _encode(
            Statement(
                nonce,
                packed16(address),
                context.host,
                packed16(control.address),
                control.port,
                LIFETIME_S,
            )
        )
        signature = context.sign(SIGNED + statement + context.certificate)
        answer = _encode(Answer(statement, context.certificate, signature))
        if len(answer) <= QUESTION.size:
            return answer
        if not self.counters["answers_too_long"]:
            log.error(
                "rendezvous: an answer would have %d bytes, the limit is %d: give this host a "
                "certificate with fewer networks",
                len(answer),
                QUESTION.size,
            )
        self.counters["answers_too_long"] += 1
        return None

    # --- asking

    async def locate(self, workload: int, destination: Address) -> Located | None:
        if self._context.control is None:
            return None
        key = (workload, destination)
        task = self._asking.get(key)
        if task is None:
            if len(self._asking) >= MAX_ASKING:
                self.counters["not_asked"] += 1
                return None
            task = self._asking[key] = asyncio.create_task(self._ask(workload, destination))
            task.add_done_callback(functools.partial(self._asked, key))
        # The caller may give up before the answer is here; the next one wants it too.
        await asyncio.wait([task])
        return None if task.cancelled() else task.result()

    async def _ask(self, workload: int, destination: Address) -> Located | None:
        self.counters["asked"] += 1
        anywhere = ipaddress.ip_address(bytes(len(destination.packed)))
        try:
            with self._context.udp_socket(workload, anywhere, 0) as sock:
                # Connected, so that port unreachable comes back as ECONNREFUSED (udp(7)).
                sock.connect((str(destination), self._context.rendezvous_port))
                async with asyncio.timeout(WAIT_S):
                    return await self._exchange(sock, destination)
        except ConnectionRefusedError:
            self.counters["refused"] += 1
            return Located(None, None, REFUSED_LIFETIME_S)
        except TimeoutError:
            self.counters["silent"] += 1
            return Located(None, None, SILENT_LIFETIME_S)
        except (OSError, LookupError) as error:
            if getattr(error, "errno", None) in (errno.EHOSTUNREACH, errno.ENETUNREACH):
                self.counters["unreachable"] += 1
                return Located(None, None, SILENT_LIFETIME_S)
            # A fault of this host's; it says nothing about the address.
            self.counters["not_asked"] += 1
            log.warning("rendezvous: %s could not be asked: %s", destination, error)
            return None

    async def _exchange(self, sock: socket.socket, destination: Address) -> Located:
        nonce = secrets.token_bytes(NONCE_BYTES)
        question = QUESTION.pack(MAGIC, VERSION, nonce, packed16(destination))
        for wait in (*RESEND_AFTER_S, WAIT_S):
            with contextlib.suppress(BlockingIOError):
                sock.send(question)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    return await self._receive(sock, nonce, destination)
        raise TimeoutError

    async def _receive(self, sock: socket.socket, nonce: bytes, destination: Address) -> Located:
        loop = asyncio.get_running_loop()
        for _ in range(MAX_BAD_ANSWERS):
            # What is longer is cut, and then no answer.
            data = await loop.sock_recv(sock, QUESTION.size)
            located = self._check(data, nonce, destination)
            if located is not None:
                return located
            self.counters["answers_ignored"] += 1
        log.warning("rendezvous: who answers for %s is not in charge of it", destination)
        return Located(None, None, SILENT_LIFETIME_S)

    def _check(self, data: bytes, nonce: bytes, destination: Address) -> Located | None:
        """What an answer says; None unless it is to this question and from a slimd in charge."""
        try:
            answer = _decode_answer(data)
            statement = _decode_statement(answer.statement)
        except msgspec.DecodeError:
            return None
        if statement.nonce != nonce or statement.address != packed16(destination):
            return None
        control = Endpoint(from_packed16(statement.control_address), statement.control_port)
        if control.address.is_unspecified or control.address.is_multicast:
            return None
        signed = SIGNED + answer.statement + answer.certificate
        host = self._context.verify(answer.certificate, answer.signature, signed, destination)
        if host is None or host != statement.host:
            return None
        self.counters["located"] += 1
        return Located(host, control, float(min(statement.lifetime_s, LIFETIME_S)))

    def _asked(self, key: tuple[int, Address], task: asyncio.Task[Located | None]) -> None:
        del self._asking[key]
        # Looked at here, since everybody who asked may have given up.
        if not task.cancelled() and task.exception() is not None:
            log.error("rendezvous: asking for %s failed", key[1], exc_info=task.exception())


def _read_question(data: bytes, address: Address) -> bytes | None:
    """The nonce of a question about that address; None when it is none."""
    if len(data) != QUESTION.size:
        return None
    magic, version, nonce, asked = QUESTION.unpack(data)
    if (magic, version, asked) != (MAGIC, VERSION, packed16(address)):
        return None
    return bytes(nonce)


@hookimpl
def slim_discovery_backends(context: DiscoveryContext) -> list[DiscoveryBackend]:
    return [Rendezvous(context)]
