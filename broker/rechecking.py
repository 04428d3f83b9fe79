"""Asks the peer's slimd again about live connections that only it can judge: those on the overlay.

A fast connection is judged at both ends. One that went over the overlay may end at a listener
that nobody brokers, where no slimd sees it: it stays if the same connect would be allowed now.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from slim.broker.cutting import Victim, local_end
from slim.broker.endpoints import contains_any
from slim.broker.errors import ControlError
from slim.broker.local import messages

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from slim.broker.connections import ConnectionRecord, PackedEndpoint
    from slim.broker.endpoints import Network
    from slim.broker.registry import Registry
    from slim.broker.resolver import Resolver
    from slim.broker.survey import Survey

log = logging.getLogger(__name__)

QUESTIONS_AT_ONCE = 64
RETRY_S = 0.2


class Rechecking:
    """Borrows everything; `run` is its task. `cut` ends connections and says so."""

    def __init__(
        self,
        registry: Registry,
        survey: Survey,
        resolver: Resolver,
        cut: Callable[[list[Victim], str], Awaitable[set[int]]],
    ) -> None:
        self._registry = registry
        self._survey = survey
        self._resolver = resolver
        self._cut = cut
        self._networks: set[Network] = set()
        self._workloads: set[int] = set()
        self._isolated = False
        self._work = asyncio.Event()

    def ask_about(self, networks: tuple[Network, ...]) -> None:
        """Connections to addresses in these networks: the slimd there has another policy."""
        self._networks.update(networks)
        self._work.set()

    def ask_for(self, workload: int) -> None:
        """Connections of this workload: it has other labels now."""
        self._workloads.add(workload)
        self._work.set()

    def ask_isolated(self) -> None:
        """Connections of workloads that policy isolates: for them no answer means no."""
        self._isolated = True
        self._work.set()

    async def run(self) -> None:
        while True:
            await self._work.wait()
            self._work.clear()
            networks = tuple(self._networks)
            self._networks.clear()
            isolated, self._isolated = self._isolated, False
            workloads, self._workloads = self._workloads, set()
            due = {
                record.cookie: record
                for record in await self._records()
                if self._is_due(record, networks, workloads, isolated=isolated)
            }
            groups: dict[tuple[int, bytes, PackedEndpoint], list[Victim]] = {}
            for cookie, sock in (await self._survey.sockets(due.values())).items():
                record = due[cookie]
                key = (record.workload, local_end(record, sock)[0], record.peer)
                groups.setdefault(key, []).append(Victim(record, "", sock))
            limit = asyncio.Semaphore(QUESTIONS_AT_ONCE)
            await asyncio.gather(
                *(self._ask(*key, victims, limit) for key, victims in groups.items())
            )

    async def _records(self) -> list[ConnectionRecord]:
        while True:
            try:
                return await self._survey.records()
            except (ControlError, OSError) as error:
                log.warning("connections on the overlay are not judged again yet: %s", error)
                await asyncio.sleep(RETRY_S)

    def _is_due(
        self,
        record: ConnectionRecord,
        networks: tuple[Network, ...],
        workloads: set[int],
        *,
        isolated: bool,
    ) -> bool:
        if record.direction != "out" or record.path != "fallback":
            return False
        workload = self._registry.workloads.get(record.workload)
        if workload is None:
            return False
        return (
            (isolated and workload.state.isolated_egress)
            or record.workload in workloads
            or contains_any(networks, record.peer_endpoint().address)
        )

    async def _ask(
        self,
        workload: int,
        source: bytes,
        to: PackedEndpoint,
        victims: list[Victim],
        limit: asyncio.Semaphore,
    ) -> None:
        async with limit:
            answer = await self._resolver.look_up(
                messages.LookUp(0, workload, source, to[0], to[1], 0)
            )
        if isinstance(answer, messages.FlowDenied) and workload in self._registry.workloads:
            rule = answer.rule
            await self._cut([Victim(each.record, rule, each.sock) for each in victims], "by_policy")
