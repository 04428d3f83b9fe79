"""Keeps the limits of connections that live: quotas and times, and rates that changed.

Counterpart: limiting.py, which put them on the socket when it was made. Looks at the kernel's own
counters (sock_diag), four times a second while a rule or a plugin may limit anything; reaches a
socket through a duplicate of its program's fd. Everything is repeatable: what a look misses, the
next one does.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Protocol

from slim.broker.admission.keyring import boottime
from slim.broker.cutting import Victim
from slim.broker.endpoints import contains_any, from_packed16
from slim.broker.errors import ControlError
from slim.broker.kernel import pacing
from slim.broker.kernel.open_sockets import visit_sockets
from slim.broker.local import messages
from slim.broker.peers import messages as peer_messages
from slim.broker.shaping import format_duration, format_size

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable, Iterable

    from slim.broker.admission.keyring import InboundFlow
    from slim.broker.connections import ConnectionRecord, PackedEndpoint
    from slim.broker.control_links import TrapsServer
    from slim.broker.endpoints import Address, Network
    from slim.broker.kernel.sock_diag import TcpSocket
    from slim.broker.registry import Registry
    from slim.broker.shaping import Shaping
    from slim.broker.survey import Survey

log = logging.getLogger(__name__)

LOOK_EVERY_S = 0.25
"""A quota or a time ends a connection within a second of its limit."""
MAX_PAUSE_S = 0.8
SPARE = 10
"""A look that takes long is followed by a pause of so many times that, up to MAX_PAUSE_S."""
RECORDS_PER_MESSAGE = 64
MAX_WISHES = 65_536


class PaceNews(Protocol):
    """What peers are to know; peering.Peering."""

    def tell_pace(self, rate: int | None, ends: Iterable[tuple[Address, bytes]]) -> None: ...


class Enforcing:
    """Borrows everything it is made with; `run` is its one task."""

    def __init__(
        self,
        registry: Registry,
        survey: Survey,
        traps: TrapsServer,
        news: PaceNews,
        cut: Callable[[list[Victim], str], Awaitable[set[int]]],
    ) -> None:
        self._registry = registry
        self._survey = survey
        self._traps = traps
        self._news = news
        self._cut = cut
        self._wishes: dict[tuple[PackedEndpoint, PackedEndpoint], int | None] = {}
        """What peers want for (our end, theirs), not in force yet."""
        self.counters: Counter[str] = Counter()

    async def run(self) -> None:
        """Look again and again; what cannot be done now is done by a later look."""
        pause = LOOK_EVERY_S
        while True:
            await asyncio.sleep(pause)
            started = time.monotonic()
            try:
                await self._grant_wishes()
                if self._registry.plugins.may_shape(None):
                    await self._look()
            except (ControlError, OSError) as error:
                log.warning("limits of connections are not looked after: %s", error)
            pause = min(MAX_PAUSE_S, max(LOOK_EVERY_S, SPARE * (time.monotonic() - started)))

    # --- quotas and times ---------------------------------------------------------------------

    async def _look(self) -> None:
        records = await self._survey.limited()
        if not records:
            return
        sockets = await self._survey.sockets(records, info=True)
        victims, undone = [], []
        now = time.time()
        for record in records:
            sock = sockets.get(record.cookie)
            if sock is None:
                continue
            spent = find_spent(record, sock, now)
            if spent:
                victims.append(Victim(record, spent, sock))
            elif record.rate is not None and sock.max_pacing_rate > record.rate:
                # By a way round the filter: it was there before the limit, or another process
                # without a filter was given the socket.
                undone.append((record, record))
        if victims:
            await self._cut(victims, "by_limit")
        if undone:
            self.counters["limits_restored"] += await self._put(undone, sockets)

    # --- limits that change -------------------------------------------------------------------

    async def change(self, changed: list[tuple[ConnectionRecord, ConnectionRecord]]) -> None:
        """Put other limits in force: (record as it was, record as it is now)."""
        if not changed:
            return
        for start in range(0, len(changed), RECORDS_PER_MESSAGE):
            part = [new for _, new in changed[start : start + RECORDS_PER_MESSAGE]]
            await self._traps.request(
                lambda token, part=part: messages.Relimit(token, part)  # type: ignore[misc]
            )
        sockets = await self._survey.sockets(new for _, new in changed)
        self.counters["limits_changed"] += await self._put(changed, sockets)
        self._tell_peers(changed)

    async def change_flow(self, flow: InboundFlow, shaping: Shaping | None) -> None:
        """Whom it admits from now on gets these limits."""
        left_ms = int((flow.expires - boottime()) * 1000)
        if left_ms > 0:
            await self._traps.request(
                lambda token: messages.AddInboundFlow(
                    token=token,
                    flow=flow.flow,
                    peer=flow.peer,
                    workload=flow.workload,
                    destination=flow.destination,
                    port=flow.port,
                    source=flow.source,
                    source_workload=flow.source_workload,
                    rule=flow.rule,
                    lifetime_ms=left_ms,
                    shaping=shaping,
                    peer_rate=flow.peer_rate,
                )
            )

    async def _put(
        self,
        changed: list[tuple[ConnectionRecord, ConnectionRecord]],
        sockets: dict[int, TcpSocket],
    ) -> int:
        by_inode = {
            sock.inode: pair
            for pair in changed
            if (sock := sockets.get(pair[1].cookie)) is not None
        }
        by_inode.pop(0, None)

        def visit(inode: int, sock: socket.socket) -> bool:
            return _relimit(sock, *by_inode[inode])

        return len(await asyncio.to_thread(visit_sockets, by_inode, visit))

    async def mark(self, workloads: set[int]) -> None:
        """Give the live host sockets of these workloads the marks that new ones get."""
        if not workloads:
            return
        records = [
            record
            for record in await self._survey.records()
            if record.path == "fast" and record.workload in workloads
        ]
        sockets = await self._survey.sockets(records)
        marks = {}
        for record in records:
            workload = self._registry.workloads.get(record.workload)
            sock = sockets.get(record.cookie)
            if workload is not None and sock is not None and sock.inode:
                marks[sock.inode] = workload.state.mark

        def visit(inode: int, sock: socket.socket) -> bool:
            pacing.set_mark(sock, marks[inode])
            return True

        await asyncio.to_thread(visit_sockets, marks, visit)

    def _tell_peers(self, changed: list[tuple[ConnectionRecord, ConnectionRecord]]) -> None:
        wanted: dict[int | None, list[tuple[Address, bytes]]] = defaultdict(list)
        for old, new in changed:
            if new.path == "fast" and _receive(old) != _receive(new):
                end = peer_messages.pack_end(new.peer, new.local)
                wanted[_receive(new)].append((from_packed16(new.peer[0]), end))
        for rate, ends in wanted.items():
            self._news.tell_pace(rate, ends)
            for address, end in ends:
                if self._registry.by_address(address) is not None:
                    # Both ends are this host's.
                    self._wish(rate, end)

    # --- what peers want ----------------------------------------------------------------------

    def peer_wants(
        self, rate: int | None, ends: list[bytes], networks: tuple[Network, ...]
    ) -> None:
        """A peer, whose workloads are in the networks, wants to receive so much at most."""
        for end in ends:
            if contains_any(networks, from_packed16(peer_messages.unpack_end(end)[1][0])):
                self._wish(rate, end)

    def _wish(self, rate: int | None, end: bytes) -> None:
        if len(self._wishes) < MAX_WISHES:
            self._wishes[peer_messages.unpack_end(end)] = rate

    async def _grant_wishes(self) -> None:
        if not self._wishes:
            return
        records = await self._survey.records()
        wishes, self._wishes = self._wishes, {}
        changed = []
        for record in records:
            key = record.local, record.peer
            if record.path == "fast" and key in wishes and wishes[key] != record.peer_rate:
                changed.append((record, record.limited_by(record.shaping, wishes[key])))
        await self.change(changed)


def find_spent(record: ConnectionRecord, sock: TcpSocket, now: float) -> str:
    """Which limit ends the connection, in words; empty while none does. `now`: time.time()."""
    shaping = record.shaping
    if shaping is None:
        return ""
    # The clock may have been set back since.
    age_s = max(0.0, now - record.created)
    if shaping.quota is not None and sock.bytes_acked + sock.bytes_received >= shaping.quota:
        return f"shaping: quota of {format_size(shaping.quota)} spent"
    if shaping.lifetime_s is not None and age_s >= shaping.lifetime_s:
        return f"shaping: lifetime of {format_duration(shaping.lifetime_s)} over"
    # Before the first byte of payload the kernel counts from the handshake, or from boot.
    idle_s = min(age_s, sock.idle_ms / 1000)
    if shaping.idle_s is not None and idle_s >= shaping.idle_s:
        return f"shaping: idle for {format_duration(shaping.idle_s)}"
    return ""


def _relimit(sock: socket.socket, old: ConnectionRecord, new: ConnectionRecord) -> bool:
    """Put the new limits on a socket, and take away what only the old ones had; borrows it."""
    before, after = old.shaping, new.shaping
    try:
        if new.rate is not None and (old.rate != new.rate or pacing.read_rate(sock) > new.rate):
            pacing.set_rate(sock, new.rate)
        elif new.rate is None and old.rate is not None:
            pacing.set_rate(sock, pacing.UNPACED)
        if after is not None and after.dscp is not None:
            pacing.set_dscp(sock, after.dscp)
        elif before is not None and before.dscp is not None:
            pacing.set_dscp(sock, 0)
        if after is not None and after.priority is not None:
            pacing.set_priority(sock, after.priority)
        elif before is not None and before.priority is not None:
            pacing.set_priority(sock, 0)
    except OSError as error:
        log.warning("limits of %s not changed: %s", new.peer_endpoint(), error)
        return False
    return True


def _receive(record: ConnectionRecord) -> int | None:
    return record.shaping.receive if record.shaping is not None else None
