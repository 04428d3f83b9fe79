"""All channels of this host to others: one per pair, dialled on demand, with back-off.

If both hosts dial at once, the channel dialled by the host with the smaller name stays; both
ends decide so. A channel that stood for a while is replaced by a new one: the peer restarted.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import logging
import random
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from slim.broker.errors import ControlError
from slim.broker.peers import identity, messages, streams
from slim.broker.peers.frames import FrameError
from slim.broker.peers.link import HELLO_LIMIT_S, Link, PeerHandler, PeerInfo

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Coroutine
    from ssl import SSLContext

    from slim.broker.endpoints import Address, Endpoint
    from slim.broker.peers.pki import HostCredentials

log = logging.getLogger(__name__)

BACK_OFF_FIRST_S = 0.2
BACK_OFF_LAST_S = 30.0
MAX_LINKS = 1024
MAX_DIALS = 4096
SETTLED_S = 5.0
"""How old a channel is that has proved useful, and that a second one replaces."""
REPLACEMENT_S = 0.25
"""How long the replacement of a young channel may take."""
FORGET_S = 600.0
ACCEPT_PAUSE_S = 1.0
COMPLAIN_EVERY_S = 60.0
MAX_COMPLAINTS = 1024
EXPIRES_SOON = datetime.timedelta(days=14)


@dataclass(slots=True)
class Dial:
    """What is known of one endpoint that we dial."""

    task: asyncio.Task[Link] | None = None
    host: str = ""
    error: str = ""
    retry_at: float = 0.0
    back_off_s: float = BACK_OFF_FIRST_S
    changed: float = 0.0
    has_ended_young: bool = False

    def failed(self, error: str) -> None:
        """Not to be tried again for a while."""
        self.changed = time.monotonic()
        self.error = error
        self.retry_at = self.changed + self.back_off_s * random.uniform(0.8, 1.2)
        self.back_off_s = min(2 * self.back_off_s, BACK_OFF_LAST_S)

    def ended(self, error: str, *, young: bool) -> None:
        """Its channel ended: a peer that accepts us and then does not want us is a failure too.

        The first time it may just as well be that both dialled at once.
        """
        if young and self.has_ended_young:
            self.failed(error)
        elif not young:
            self.back_off_s = BACK_OFF_FIRST_S
        self.has_ended_young = young
        self.changed = time.monotonic()
        self.error = error

    def is_forgotten(self, now: float) -> bool:
        return self.task is None and now > max(self.changed, self.retry_at) + FORGET_S


@dataclass(frozen=True, slots=True)
class LinkStatus:
    """One peer; see admin.messages.PeerStatus."""

    host: str
    endpoint: str
    state: str
    error: str
    retry_in_s: float
    rtt_ms: float


class PeerLinks:
    """Owns the listening socket, all links and their tasks."""

    def __init__(
        self,
        credentials: HostCredentials,
        hello: Callable[[], messages.Hello],
        handler: PeerHandler,
    ) -> None:
        self._credentials = credentials
        self._own = credentials.identity
        self._hello = hello
        self._handler = handler
        # Made once: loading certificates takes longer than a handshake.
        self._client_tls = credentials.client_context()
        self._server_tls = credentials.server_context()
        self._links: dict[str, Link] = {}
        self._dials: dict[Endpoint, Dial] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._strangers = streams.Strangers()
        self._complaints: dict[object, float] = {}
        self._kept = asyncio.Event()
        """Set, and replaced by another, whenever there is a new link."""
        self._listener: socket.socket | None = None
        self._is_closed = False
        self._counters: Counter[str] = Counter()

    async def start(self, listen: Endpoint) -> None:
        """Take channels at the endpoint; OSError as from bind(2)."""
        self._warn_of_expiry()
        self._listener = streams.listen(listen)
        self._spawn(self._accept(self._listener))

    def _warn_of_expiry(self) -> None:
        if self._own.not_after - identity.now() < EXPIRES_SOON:
            log.warning(
                "the certificate of %s expires on %s: issue a new one, then slimctl reload",
                self._own.host,
                f"{self._own.not_after:%Y-%m-%d}",
            )

    async def close(self) -> None:
        """End every channel, and wait until nothing of them runs."""
        self._is_closed = True
        for link in [*self._links.values()]:
            link.close()
        dialling = [dial.task for dial in self._dials.values() if dial.task is not None]
        ending: list[asyncio.Task[None] | asyncio.Task[Link]] = [*self._tasks, *dialling]
        for task in ending:
            task.cancel()
        await asyncio.gather(*ending, return_exceptions=True)
        if self._listener is not None:
            self._listener.close()

    # --- use ----------------------------------------------------------------------------------

    async def ask(
        self, host: str | None, endpoint: Endpoint, make: Callable[[int], messages.Resolve]
    ) -> tuple[str, messages.ResolveAnswer]:
        """Ask the slimd at `endpoint` (named `host`, if given): its name and its answer.

        Dials if there is no channel. ControlError when there is none to be had. The caller sets
        its own time limit; the dialling goes on without it.
        """
        if host == self._own.host:
            # Control looks at its own workloads first: this address is none of theirs.
            return host, messages.ResolvedUnknown(0)
        link = self._links.get(host) if host else None
        if link is None:
            link = await self._dial(endpoint)
        if host is not None and link.host != host:
            raise ControlError(f"{endpoint} is {link.host}, not {host}")
        try:
            return link.host, await link.ask(make)
        except ControlError:
            other = await self._replacement(link)
            if other is None:
                raise
            return other.host, await other.ask(make)

    def send(self, host: str, message: messages.AnyPeerMessage) -> bool:
        """Queue a message for a host; False when there is no channel to it."""
        link = self._links.get(host)
        return link is not None and link.send(message)

    def connected(self) -> list[PeerInfo]:
        return [link.info for link in self._links.values()]

    def use_credentials(
        self, credentials: HostCredentials, client_tls: SSLContext, server_tls: SSLContext
    ) -> None:
        """Open channels with these from now on; other authorities end those that are open.

        The name of the host stays the same; the contexts are those of the credentials.
        """
        is_same_authority = credentials.authorities == self._credentials.authorities
        self._credentials = credentials
        self._own = credentials.identity
        self._client_tls = client_tls
        self._server_tls = server_tls
        self._warn_of_expiry()
        if not is_same_authority:
            for link in [*self._links.values()]:
                link.close()

    def status(self) -> list[LinkStatus]:
        """Every peer that is connected, being dialled, or failed in the last ten minutes."""
        now = time.monotonic()
        self._forget_dials(now)
        found = []
        at = {dial.host: endpoint for endpoint, dial in self._dials.items() if dial.host}
        for host, link in sorted(self._links.items()):
            endpoint = str(at[host]) if host in at else ""
            found.append(LinkStatus(host, endpoint, "connected", "", 0.0, link.rtt_ms))
        for dialled, dial in self._dials.items():
            if dial.host not in self._links:
                state = "connecting" if dial.task is not None else "failed"
                wait = max(0.0, dial.retry_at - now)
                found.append(LinkStatus(dial.host, str(dialled), state, dial.error, wait, 0.0))
        return found

    @property
    def counters(self) -> Counter[str]:
        """Of all channels, also of those that ended."""
        return sum((link.counters for link in self._links.values()), self._counters)

    async def _replacement(self, link: Link) -> Link | None:
        """The channel that took the place of one that ended, or is just about to."""
        if not link.is_closed():
            return None
        # When both dial at once, one end may close a channel before the other end has the second.
        patience = REPLACEMENT_S if link.age_s < SETTLED_S else 0.0
        deadline = asyncio.get_running_loop().time() + patience
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(deadline):
                while self._links.get(link.host, link) is link:
                    await self._kept.wait()
        other = self._links.get(link.host)
        return other if other is not link else None

    # --- dialling -----------------------------------------------------------------------------

    async def _dial(self, endpoint: Endpoint) -> Link:
        if self._is_closed:
            raise ControlError("slimd stops")
        dial = self._dials.get(endpoint)
        if dial is None:
            dial = self._new_dial(endpoint)
        link = self._links.get(dial.host)
        if link is not None:
            return link
        if dial.task is None:
            wait = dial.retry_at - time.monotonic()
            if wait > 0:
                raise ControlError(f"channel to {endpoint}: {dial.error}; next try in {wait:.1f} s")
            dial.task = asyncio.create_task(self._open(endpoint, dial))
        return await asyncio.shield(dial.task)

    def _new_dial(self, endpoint: Endpoint) -> Dial:
        if len(self._dials) >= MAX_DIALS:
            self._forget_dials(time.monotonic())
        if len(self._dials) >= MAX_DIALS:
            raise ControlError(f"{MAX_DIALS} slimds are being dialled")
        return self._dials.setdefault(endpoint, Dial())

    def _forget_dials(self, now: float) -> None:
        for endpoint, dial in [*self._dials.items()]:
            if dial.is_forgotten(now) and dial.host not in self._links:
                del self._dials[endpoint]

    async def _open(self, endpoint: Endpoint, dial: Dial) -> Link:
        try:
            async with asyncio.timeout(2 * HELLO_LIMIT_S):
                stream = await streams.dial_tls(endpoint, self._client_tls)
                link = Link(stream, dialled=True, handler=self._handler)
                await self._greet(link)
        except (OSError, EOFError) as error:
            text = streams.explain(error)
            if text != dial.error:
                # On demand, a peer that is down would be complained about again and again.
                self._handler.failed(endpoint, text)
            dial.failed(text)
            self._counters["dials_failed"] += 1
            raise ControlError(f"channel to {endpoint}: {text}") from None
        finally:
            dial.task = None
        dial.host, dial.error, dial.changed = link.host, "", time.monotonic()
        if not self._keep(link):
            link.refuse()
            return self._links[link.host]
        self._spawn(self._serve(link, dial))
        return link

    async def _greet(self, link: Link) -> None:
        try:
            await link.greet(self._hello())
        except BaseException:
            link.close()
            raise

    # --- taking -------------------------------------------------------------------------------

    async def _accept(self, listener: socket.socket) -> None:
        while True:
            # Accepting need not wait for anything: under a flood it would be all that runs, and
            # nobody would be counted.
            await asyncio.sleep(0)
            try:
                sock, address = await streams.accept(listener)
            except OSError as error:
                # No more files or memory: connections wait in the kernel's queue meanwhile.
                log.error("no channel can be taken: %s", streams.explain(error))
                await asyncio.sleep(ACCEPT_PAUSE_S)
                continue
            if self._strangers.is_full(address) or len(self._links) >= MAX_LINKS:
                sock.close()
                self._counters["inbound_refused"] += 1
                self._complain(address, f"a channel from {address} refused: there are too many")
                continue
            self._spawn(self._take(sock, address))

    async def _take(self, sock: socket.socket, address: Address) -> None:
        try:
            with self._strangers.counted(address):
                async with asyncio.timeout(HELLO_LIMIT_S):
                    stream = await streams.serve_tls(sock, self._server_tls)
                    link = Link(stream, dialled=False, handler=self._handler)
                    await self._greet(link)
        except (OSError, EOFError) as error:
            self._counters["inbound_failed"] += 1
            text = streams.explain(error)
            self._complain(address, f"a channel from {address} refused: {text}")
            return
        if not self._keep(link):
            link.refuse()
            return
        await self._serve(link, None)

    # --- running ------------------------------------------------------------------------------

    def _keep(self, link: Link) -> bool:
        """Whether this channel is the one to keep; closes the one it replaces."""
        present = self._links.get(link.host)
        if present is not None:
            by_smaller = link.dialled == (self._own.host < link.host)
            if not by_smaller and present.age_s < SETTLED_S and not present.is_closed():
                return False
            present.close()
        self._links[link.host] = link
        self._kept.set()
        self._kept = asyncio.Event()
        self._handler.connected(link.info)
        return True

    async def _serve(self, link: Link, dial: Dial | None) -> None:
        why = "slimd stops"
        try:
            await link.serve()
        except FrameError as error:
            why = str(error)
            self._counters["protocol_violations"] += 1
            self._complain(link.host, f"channel to {link.host} dropped: {why}")
        except OSError as error:
            why = streams.explain(error)
        finally:
            self._counters += link.counters
            if self._links.get(link.host) is link:
                del self._links[link.host]
                if dial is not None:
                    dial.ended(why, young=link.age_s < SETTLED_S)
                self._handler.disconnected(link.info, f"{why} ({_summary(link.counters)})")

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            log.error("a channel failed", exc_info=error)

    def _complain(self, about: object, text: str) -> None:
        """A warning; about the same host or address not more than one in a minute."""
        now = time.monotonic()
        if now - self._complaints.get(about, -COMPLAIN_EVERY_S) < COMPLAIN_EVERY_S:
            log.debug("%s", text)
            return
        if len(self._complaints) >= MAX_COMPLAINTS:
            self._complaints.clear()
        self._complaints[about] = now
        log.warning("%s", text)


def _summary(counters: Counter[str]) -> str:
    asked, received = counters["questions_asked"], counters["questions_received"]
    return f"{asked} questions asked, {received} received"


__all__ = ["LinkStatus", "PeerHandler", "PeerInfo", "PeerLinks"]
