"""Turns what traps wrote into its ring (news_ring.py), and what is over, into events.

Looked at ten times a second, so that traps never waits for control and costs nobody a message per
connection.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any

import msgspec

from slim.broker.connections import ConnectionRecord, read_record
from slim.broker.decisions import verdict_word
from slim.broker.errors import ControlError
from slim.broker.events import ConnectionClosed, ConnectionOpened
from slim.broker.news_ring import NewsRing

if TYPE_CHECKING:
    from collections.abc import Iterable

    from slim.broker.control_links import KeeperClient
    from slim.broker.observing import Observing
    from slim.broker.registry import Registry

log = logging.getLogger(__name__)

LOOK_EVERY_S = 0.1
LOOK_FOR_RING_EVERY_S = 2.0
SLICE = 200
"""Entries between two turns of the event loop."""


class ConnectionNews:
    """Owns a mapping of the ring, once there is one; `run` is its one task."""

    def __init__(self, registry: Registry, keeper: KeeperClient, observing: Observing) -> None:
        self._registry = registry
        self._keeper = keeper
        self._observing = observing
        self._ring: NewsRing | None = None

    def close(self) -> None:
        if self._ring is not None:
            self._ring.close()

    async def run(self) -> None:
        while self._ring is None:
            try:
                self._ring = await self._open()
            except (ControlError, ValueError) as error:
                log.debug("no news of connections yet: %s", error)
            if self._ring is None:
                await asyncio.sleep(LOOK_FOR_RING_EVERY_S)
        while True:
            self.look(self._ring)
            has_more = self._ring.seen < self._ring.written
            await asyncio.sleep(0 if has_more else LOOK_EVERY_S)

    def look(self, ring: NewsRing) -> None:
        """Publish what is new, up to a slice."""
        entries, lost = ring.read(SLICE)
        for entry in entries:
            try:
                record = read_record(entry.payload)
            except msgspec.DecodeError:
                lost += 1
                continue
            fields = self._fields(record)
            fields["time"] = record.created
            self._observing.publish(ConnectionOpened(setup_us=entry.took_us, **fields))
        if lost:
            self._observing.lose(lost)

    def ended(self, records: Iterable[ConnectionRecord]) -> None:
        """These connections are over."""
        now = time.time()
        for record in records:
            duration_s = max(0.0, now - record.created)
            self._observing.publish(ConnectionClosed(duration_s=duration_s, **self._fields(record)))

    def _fields(self, record: ConnectionRecord) -> dict[str, Any]:
        local, host = record.local_endpoint(), record.host_endpoint()
        return {
            "direction": record.direction,
            "workload": self._registry.name_of(record.workload),
            "pid": record.pid,
            "overlay_local": str(local) if local.port else "",
            "overlay_peer": str(record.peer_endpoint()),
            "host_peer": str(host) if host is not None else "",
            "peer_host": record.peer_host,
            "path": record.path,
            "reason": record.reason,
            "verdict": verdict_word(record.path, record.rule),
            "rule": record.rule,
            "cookie": record.cookie,
        }

    async def _open(self) -> NewsRing | None:
        held, _ = await self._keeper.fetch("memory/news")
        fds = [fd for _, _, own in held for fd in own]
        return NewsRing(fds[0]) if fds else None
