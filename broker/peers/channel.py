"""All channels of this host to others: one per pair, dialled on demand, with back-off.

If both hosts dial at once, the channel dialled by the host with the smaller name stays; both
ends decide so. A channel that stood for a while is replaced by a new one: the peer restarted.
"""

from __future__ import annotations

import asyncio
import logging
import random
import ssl
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from slim.broker.errors import ControlError
from slim.broker.peers.frames import FrameError
from slim.broker.peers.link import HELLO_LIMIT_S, Link, PeerHandler, PeerInfo

if TYPE_CHECKING:
    from collections.abc import Callable

    from slim.broker.endpoints import Endpoint
    from slim.broker.peers import messages
    from slim.broker.peers.pki import HostCredentials

log = logging.getLogger(__name__)

BACK_OFF_FIRST_S = 0.2
BACK_OFF_LAST_S = 30.0
MAX_INBOUND = 1024
SETTLED_S = 5.0


@dataclass(slots=True)
class Dial:
    """What is known of one endpoint that we dial."""

    task: asyncio.Task[Link] | None = None
    host: str = ""
    error: str = ""
    retry_at: float = 0.0
    back_off_s: float = BACK_OFF_FIRST_S


@dataclass(frozen=True, slots=True)
class LinkStatus:
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
        self._hello = hello
        self._handler = handler
        # Made once: loading certificates takes longer than a handshake.
        self._client_tls = credentials.client_context()
        self._server: asyncio.Server | None = None
        self._links: dict[str, Link] = {}
        self._dials: dict[Endpoint, Dial] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._inbound = 0
        self.counters: Counter[str] = Counter()

    async def start(self, listen: Endpoint) -> None:
        """Take channels at the endpoint; OSError as from bind(2)."""
        self._server = await asyncio.start_server(
            self._accept,
            str(listen.address),
            listen.port,
            ssl=self._credentials.server_context(),
            ssl_handshake_timeout=HELLO_LIMIT_S,
            reuse_address=True,
        )

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for link in [*self._links.values()]:
            link.close()
        for dial in self._dials.values():
            if dial.task is not None:
                dial.task.cancel()
        for task in [*self._tasks]:
            task.cancel()

    # --- use ----------------------------------------------------------------------------------

    async def ask(
        self, host: str | None, endpoint: Endpoint, make: Callable[[int], messages.Resolve]
    ) -> tuple[str, messages.ResolveAnswer]:
        """Ask the slimd at `endpoint` (named `host`, if given): its name and its answer.

        Dials if there is no channel. ControlError when there is none to be had. The caller sets
        its own time limit; the dialling goes on without it.
        """
        link = self._links.get(host) if host else None
        if link is None:
            link = await self._dial(endpoint)
        if host is not None and link.host != host:
            raise ControlError(f"{endpoint} is {link.host}, not {host}")
        try:
            return link.host, await link.ask(make)
        except ControlError:
            # Replaced by the channel that the peer dialled meanwhile?
            other = self._links.get(link.host)
            if other is None or other is link:
                raise
            return other.host, await other.ask(make)

    def send(self, host: str, message: messages.AnyPeerMessage) -> bool:
        """Queue a message for a host; False when there is no channel to it."""
        link = self._links.get(host)
        return link is not None and link.send(message)

    def status(self) -> list[LinkStatus]:
        """Every peer that is connected, being dialled, or failed."""
        now = time.monotonic()
        found = []
        at = {dial.host: endpoint for endpoint, dial in self._dials.items() if dial.host}
        for host, link in sorted(self._links.items()):
            endpoint = str(at[host]) if host in at else ""
            found.append(LinkStatus(host, endpoint, "connected", "", 0.0, link.rtt_ms))
        for dialled, dial in self._dials.items():
            if dial.host not in self._links or not dial.host:
                state = "connecting" if dial.task is not None else "failed"
                wait = max(0.0, dial.retry_at - now)
                found.append(LinkStatus(dial.host, str(dialled), state, dial.error, wait, 0.0))
        return found

    # --- dialling -----------------------------------------------------------------------------

    async def _dial(self, endpoint: Endpoint) -> Link:
        dial = self._dials.setdefault(endpoint, Dial())
        link = self._links.get(dial.host)
        if link is not None:
            return link
        if dial.task is None:
            wait = dial.retry_at - time.monotonic()
            if wait > 0:
                raise ControlError(f"{dial.error}; next try in {wait:.1f} s")
            dial.task = asyncio.create_task(self._open(endpoint, dial))
        return await asyncio.shield(dial.task)

    async def _open(self, endpoint: Endpoint, dial: Dial) -> Link:
        try:
            async with asyncio.timeout(2 * HELLO_LIMIT_S):
                reader, writer = await asyncio.open_connection(
                    str(endpoint.address),
                    endpoint.port,
                    ssl=self._client_tls,
                    server_hostname="",
                    ssl_handshake_timeout=HELLO_LIMIT_S,
                )
                link = Link(reader, writer, dialled=True, handler=self._handler)
                try:
                    await link.greet(self._hello())
                except BaseException:
                    link.close()
                    raise
        except (OSError, EOFError, ssl.SSLError, TimeoutError) as error:
            dial.error = _text(error)
            dial.retry_at = time.monotonic() + dial.back_off_s * random.uniform(0.8, 1.2)
            dial.back_off_s = min(2 * dial.back_off_s, BACK_OFF_LAST_S)
            self.counters["dials_failed"] += 1
            log.warning("channel to %s failed: %s", endpoint, dial.error)
            raise ControlError(f"channel to {endpoint}: {dial.error}") from None
        finally:
            dial.task = None
        dial.host, dial.error, dial.back_off_s = link.host, "", BACK_OFF_FIRST_S
        if not self._keep(link):
            link.close()
            return self._links[link.host]
        self._run(link)
        return link

    # --- taking -------------------------------------------------------------------------------

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = Link(reader, writer, dialled=False, handler=self._handler)
        if self._inbound >= MAX_INBOUND:
            self.counters["inbound_refused"] += 1
            link.close()
            return
        self._inbound += 1
        try:
            await link.greet(self._hello())
            if not self._keep(link):
                return
            await self._serve(link)
        except (OSError, EOFError, TimeoutError) as error:
            self.counters["inbound_failed"] += 1
            name = writer.get_extra_info("peername")
            log.warning("channel from %s refused: %s", name[0] if name else "?", _text(error))
        except asyncio.CancelledError:
            return
        finally:
            self._inbound -= 1
            link.close()

    # --- running ------------------------------------------------------------------------------

    def _keep(self, link: Link) -> bool:
        """Whether this channel is the one to keep; closes the one it replaces."""
        present = self._links.get(link.host)
        if present is not None:
            own = self._credentials.identity.host
            by_smaller = link.dialled == (own < link.host)
            if not by_smaller and time.monotonic() - present.since < SETTLED_S:
                return False
            present.close()
        self._links[link.host] = link
        log.info("channel to %s is up", link.host)
        self._handler.connected(link.info)
        return True

    def _run(self, link: Link) -> None:
        task = asyncio.create_task(self._serve(link))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, link: Link) -> None:
        try:
            await link.serve()
        except FrameError as error:
            self.counters["protocol_violations"] += 1
            log.error("channel to %s dropped: %s", link.host, error)
        except OSError as error:
            log.info("channel to %s ended: %s", link.host, _text(error))
        finally:
            if self._links.get(link.host) is link:
                del self._links[link.host]
                self._handler.disconnected(link.info)


def _text(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "timed out"
    if isinstance(error, EOFError | asyncio.IncompleteReadError):
        return "closed by the peer"
    if isinstance(error, ssl.SSLError):
        return f"TLS: {error.reason or error}"
    return str(error) or type(error).__name__


__all__ = ["LinkStatus", "PeerHandler", "PeerInfo", "PeerLinks"]
