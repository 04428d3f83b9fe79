"""Hosts that know each other by certificates, and slimds' ends of channels over loopback."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import TYPE_CHECKING

from slim.broker.endpoints import Address, Endpoint, packed16
from slim.broker.peers import frames, messages, pki
from slim.broker.peers.channel import PeerInfo, PeerLinks

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

LOOPBACK = ip_address("127.0.0.1")
NETWORKS = {"a": "10.77.1.0/24", "b": "10.77.2.0/24", "c": "10.77.3.0/24"}
LIMIT_S = 10.0


class Authority:
    """An authority and the hosts it made certificates for."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.certificate = pki.create_authority(directory, name="Test authority", days=60)

    def issue(self, host: str, *networks: str, days: int = 30) -> tuple[Path, Path]:
        return pki.issue_certificate(
            self.directory,
            host,
            [*networks] or [NETWORKS[host]],
            days=days,
            out=self.directory / "hosts",
            force=True,
        )

    def credentials(self, host: str, *networks: str) -> pki.HostCredentials:
        return pki.load_host_credentials(*self.issue(host, *networks), self.certificate)


@dataclass
class Recorder:
    """A PeerHandler that answers every question with `answer` and remembers what came."""

    answer: Callable[[messages.Resolve], messages.ResolveAnswer]
    asked: list[tuple[PeerInfo, messages.Resolve]] = field(default_factory=list)
    keys: list[messages.Key] = field(default_factory=list)
    invalidated: list[messages.Invalidate] = field(default_factory=list)
    events: list[tuple[str, str]] = field(default_factory=list)
    news: list[messages.AnyPeerMessage] = field(default_factory=list)
    ends: list[str] = field(default_factory=list)
    """Why channels ended."""
    failures: list[tuple[Endpoint, str]] = field(default_factory=list)
    gate: asyncio.Event | None = None
    """If given, answers wait for it."""

    async def resolve(self, peer: PeerInfo, message: messages.Resolve) -> messages.ResolveAnswer:
        self.asked.append((peer, message))
        if self.gate is not None:
            await self.gate.wait()
        return self.answer(message)

    def key(self, peer: PeerInfo, message: messages.Key) -> None:
        self.keys.append(message)

    def invalidate(self, peer: PeerInfo, message: messages.Invalidate) -> None:
        self.invalidated.append(message)

    def policy_changed(self, peer: PeerInfo) -> None:
        self.events.append(("policy changed", peer.host))

    def relabelled(self, peer: PeerInfo, message: messages.Relabelled) -> None:
        self.news.append(message)

    def cut(self, peer: PeerInfo, message: messages.Cut) -> None:
        self.news.append(message)

    def pace(self, peer: PeerInfo, message: messages.Pace) -> None:
        self.news.append(message)

    def connected(self, peer: PeerInfo) -> None:
        self.events.append(("connected", peer.host))

    def disconnected(self, peer: PeerInfo, why: str) -> None:
        self.events.append(("disconnected", peer.host))
        self.ends.append(why)

    def failed(self, endpoint: Endpoint, why: str) -> None:
        self.failures.append((endpoint, why))


def answer_fast(message: messages.Resolve) -> messages.ResolveAnswer:
    """Yes, at the host's port 20000 + the port in question."""
    return messages.ResolvedFast(
        message.token, packed16(LOOPBACK), 20000 + message.port, 7, 300_000, False, "rules:all"
    )


class Side:
    """One slimd's links, with everything a test looks at."""

    def __init__(
        self,
        credentials: pki.HostCredentials,
        answer: Callable[[messages.Resolve], messages.ResolveAnswer] = answer_fast,
    ) -> None:
        self.host = credentials.identity.host
        self.endpoint = Endpoint(LOOPBACK, free_port())
        self.recorder = Recorder(answer)
        self.hello = messages.Hello(
            messages.PROTOCOL, self.host, [packed16(LOOPBACK)], ["preamble"]
        )
        self.links = PeerLinks(credentials, lambda: self.hello, self.recorder)

    async def __aenter__(self) -> Side:
        await self.links.start(self.endpoint)
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.links.close()

    async def ask(self, other: Side, **changes: object) -> messages.ResolveAnswer:
        """Ask the other side about a workload of its own, by its name and endpoint."""
        _, answer = await self.links.ask(
            other.host, other.endpoint, question(self.host, other.host, **changes)
        )
        return answer

    @property
    def is_connected(self) -> bool:
        return any(status.state == "connected" for status in self.links.status())


def question(asker: str, owner: str, /, **changes: object) -> Callable[[int], messages.Resolve]:
    """A question about a workload of one host by a workload of another."""
    fields: dict[str, object] = {
        "workload": "web",
        "namespace": "shop",
        "labels": {"app": "web"},
        "source": packed16(workload_of(asker)),
        "destination": packed16(workload_of(owner)),
        "port": 80,
        **changes,
    }
    return lambda token: messages.Resolve(token=token, **fields)  # type: ignore[arg-type]


def workload_of(host: str) -> Address:
    return ip_address(NETWORKS[host].replace(".0/24", ".5"))


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind((str(LOOPBACK), 0))
        port: int = sock.getsockname()[1]
        return port


class RawPeer:
    """The other end of a channel, written by hand: says what it likes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self._decoder = frames.FrameDecoder()
        self._received: list[messages.AnyPeerMessage] = []

    def send(self, *sent: messages.AnyPeerMessage) -> None:
        for message in sent:
            self.writer.write(frames.encode(message))

    async def receive(self) -> messages.AnyPeerMessage:
        """The next message; EOFError when the channel ends."""
        while not self._received:
            data = await asyncio.wait_for(self.reader.read(65536), LIMIT_S)
            if not data:
                raise EOFError
            self._received = self._decoder.feed(data)
        return self._received.pop(0)

    async def ends(self) -> bool:
        """Whether the other end closes the channel, whatever it says before."""
        try:
            while True:
                await self.receive()
        except (EOFError, OSError):
            return True


@contextlib.asynccontextmanager
async def raw_client(endpoint: Endpoint, context: ssl.SSLContext | None) -> AsyncIterator[RawPeer]:
    """Dial a side by hand; without a context no TLS is spoken."""
    reader, writer = await asyncio.open_connection(
        str(endpoint.address),
        endpoint.port,
        ssl=context,
        server_hostname="" if context is not None else None,
    )
    try:
        yield RawPeer(reader, writer)
    finally:
        writer.transport.abort()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


@contextlib.asynccontextmanager
async def raw_server(
    endpoint: Endpoint, context: ssl.SSLContext
) -> AsyncIterator[asyncio.Queue[RawPeer]]:
    """Be dialled, by hand; the peers that came are in the queue."""
    came: asyncio.Queue[RawPeer] = asyncio.Queue()
    writers = []

    def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        came.put_nowait(RawPeer(reader, writer))

    server = await asyncio.start_server(take, str(endpoint.address), endpoint.port, ssl=context)
    try:
        yield came
    finally:
        server.close()
        for writer in writers:
            writer.transport.abort()
        await asyncio.sleep(0.01)


async def until(condition: Callable[[], object], what: str) -> None:
    """Wait until the condition is true; AssertionError after a while."""
    deadline = asyncio.get_running_loop().time() + LIMIT_S
    while not condition():
        assert asyncio.get_running_loop().time() < deadline, f"not within {LIMIT_S} s: {what}"
        await asyncio.sleep(0.005)
