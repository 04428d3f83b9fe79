"""Looks at what traps has on record and what sock_diag shows; tells traps what is over.

Nothing here asks traps: connections are listed even while it is busy, stopped or restarting.
"""

from __future__ import annotations

import asyncio
import logging
import os
from typing import TYPE_CHECKING

from slim.broker import reporting
from slim.broker.admin import messages as admin
from slim.broker.admission.keyring import read_flows
from slim.broker.errors import ControlError
from slim.broker.kernel.sock_diag import LIVE_STATES
from slim.broker.local import messages
from slim.broker.slots import SlotStore
from slim.broker.sweeping import Living, Sweep

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from slim.broker.admission.keyring import InboundFlow
    from slim.broker.connections import ConnectionRecord
    from slim.broker.control_links import KeeperClient, TrapsServer
    from slim.broker.kernel.sock_diag import TcpSocket
    from slim.broker.registry import Registry

log = logging.getLogger(__name__)

SWEEP_EVERY_S = 2.0
COOKIES_PER_MESSAGE = 4096


class Survey:
    """Owns a mapping of the records' memfd, once there is one."""

    def __init__(self, registry: Registry, keeper: KeeperClient, traps: TrapsServer) -> None:
        self._registry = registry
        self._keeper = keeper
        self._traps = traps
        self._records: reporting.Records | None = None
        self._sweep = Sweep()
        self._sweeping = asyncio.Lock()

    def close(self) -> None:
        if self._records is not None:
            self._records.close()

    async def sweep(self, on_ended: Callable[[list[ConnectionRecord]], None]) -> None:
        """Tell `on_ended` which connections are over, and traps which it may forget."""
        while True:
            await asyncio.sleep(SWEEP_EVERY_S)
            try:
                records = await self._open_records()
                if records is None:
                    continue
                opened, living = Living(self._registry, LIVE_STATES), Living(self._registry)
                async with self._sweeping:
                    swept = await asyncio.to_thread(
                        self._sweep.find, records.each(), opened.has, living.has
                    )
                    on_ended(swept.ended)
            except ControlError:
                continue
            except OSError as error:
                # No fd or memory for a look: the next one may have it.
                log.warning("connections that are over are not looked for: %s", error)
                continue
            cookies = [record.cookie for record in swept.gone]
            for start in range(0, len(cookies), COOKIES_PER_MESSAGE):
                self._traps.send(
                    messages.ForgetConnections(cookies[start : start + COOKIES_PER_MESSAGE])
                )

    async def ended_with(self, workload: int) -> list[ConnectionRecord]:
        """Connections whose end was not told yet, of a workload that traps is to forget."""
        try:
            records = await self._open_records()
        except ControlError:
            return []
        if records is None:
            return []
        async with self._sweeping:
            return await asyncio.to_thread(self._sweep.find_of, records.each(), workload)

    async def count_open(self) -> int:
        """Connections that are not over; those in TIME_WAIT are, for their programs."""
        try:
            records = await self._open_records()
        except ControlError:
            return 0
        if records is None:
            return 0
        living = Living(self._registry, LIVE_STATES)
        return await asyncio.to_thread(
            lambda: sum(record.path != "denied" and living.has(record) for record in records.each())
        )

    async def inbound_flows(self) -> list[InboundFlow]:
        """Who traps admits now."""
        store = await self.open_admission(writable=False)
        if store is None:
            return []
        try:
            return await asyncio.to_thread(lambda: [*read_flows(store)])
        finally:
            store.close()

    async def open_admission(self, *, writable: bool) -> SlotStore | None:
        """The keys and flows that traps keeps, which the caller owns; None before there are any."""
        held, _ = await self._keeper.fetch("memory/admission")
        fds = [fd for _, _, own in held for fd in own]
        for fd in fds[1:]:
            os.close(fd)
        return SlotStore(fds[0], writable=writable) if fds else None

    async def records(self) -> list[ConnectionRecord]:
        """Every connection on record, over or not; ControlError when they cannot be had."""
        records = await self._open_records()
        return await asyncio.to_thread(records.connections) if records is not None else []

    async def limited(self) -> list[ConnectionRecord]:
        """Every connection on record that has a limit, over or not."""
        records = await self._open_records()
        return await asyncio.to_thread(records.limited) if records is not None else []

    async def sockets(
        self, records: Iterable[ConnectionRecord], *, info: bool = False
    ) -> dict[int, TcpSocket]:
        """The sockets behind the records, by cookie, of those that are not over."""
        return await asyncio.to_thread(reporting.find_sockets, self._registry, records, info=info)

    async def open_records(self) -> reporting.Records | None:
        """The records themselves, borrowed; None while there are none to be had."""
        try:
            return await self._open_records()
        except ControlError:
            return None

    async def snapshot(self) -> reporting.Snapshot | None:
        records = await self.open_records()
        if records is None:
            return None
        return await asyncio.to_thread(records.snapshot, self._registry)

    async def _open_records(self) -> reporting.Records | None:
        """The records that traps writes; None before the first traps."""
        if self._records is None:
            held, _ = await self._keeper.fetch("memory/connections")
            for _, _, fds in held:
                if self._records is None and fds:
                    self._records = reporting.Records(fds.pop(0))
                for fd in fds:
                    os.close(fd)
        return self._records

    async def list_containers(self) -> admin.Containers:
        return reporting.list_containers(self._registry, await self.snapshot())

    async def list_connections(self) -> admin.Connections:
        snapshot = await self.snapshot()
        if snapshot is None:
            return admin.Connections([])
        return reporting.list_connections(snapshot, self._registry)
