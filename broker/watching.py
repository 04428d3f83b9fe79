"""The table of connections for who watches it: looked at as seldom as will do, told by changes.

A look decodes what is new on record only, and unpacks figures of TCP_INFO, not sockets: some
5 ms per thousand connections, in a thread, at most once a second, and only while somebody asks.
Each row knows the generation (the look) in which it changed; that is all a client needs to be
told what it has missed, and slimd keeps nothing about clients.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from slim.broker.admin import messages as admin
from slim.broker.connections import ConnectionRecord, read_record
from slim.broker.kernel.namespaces import in_namespace
from slim.broker.kernel.sock_diag import STATE_NAMES, Figures, dump_figures
from slim.broker.reporting import describe_connection, describe_listener, find_sockets

if TYPE_CHECKING:
    from slim.broker.registry import Registry
    from slim.broker.reporting import Records
    from slim.broker.survey import Survey

log = logging.getLogger(__name__)

LOOK_EVERY_S = 1.0
SPARE = 20
"""A look that takes long is followed by a pause of so many times that."""
MAX_GONE = 65_536
_NO_FIGURES = (0, 0, 0, 0, 0)


@dataclass(slots=True)
class Row:
    """One connection or listener, and when what about it changed."""

    payload: bytes
    """As traps wrote it; of a listener: nothing."""
    record: ConnectionRecord | None
    connection: admin.Connection
    changed: int
    traffic: admin.Traffic
    moved: int


class Watching:
    """Borrows everything it is made with."""

    def __init__(self, registry: Registry, survey: Survey) -> None:
        self._registry = registry
        self._survey = survey
        self._rows: dict[int, Row] = {}
        self._gone: deque[tuple[int, int]] = deque(maxlen=MAX_GONE)
        """(generation, cookie) of what went, oldest first."""
        # Beyond every generation of a predecessor: who knows one of those gets everything.
        self._first = self._generation = time.time_ns() // 1_000_000
        self._looked = 0.0
        self._next_look = 0.0
        self._looking = asyncio.Lock()

    async def changes(self, after: int) -> admin.Changes:
        """What changed since that generation, or all of it."""
        async with self._looking:
            if time.monotonic() >= self._next_look:
                records = await self._survey.open_records()
                if records is not None:
                    await asyncio.to_thread(self.look, records)
            return self._since(after)

    def look(self, records: Records) -> None:
        """See what is there now; 5 ms per thousand connections."""
        started = time.monotonic()
        self._generation += 1
        before = self._rows
        self._rows = {}
        self._take_connections(records, before)
        self._take_listeners(records, before)
        for cookie in before.keys() - self._rows.keys():
            self._gone.append((self._generation, cookie))
        self._looked = time.monotonic()
        self._next_look = self._looked + max(LOOK_EVERY_S, SPARE * (self._looked - started))

    def _take_connections(self, records: Records, before: dict[int, Row]) -> None:
        fresh: dict[int, tuple[bytes, ConnectionRecord]] = {}
        known: list[tuple[int, Row]] = []
        for cookie, payload in records.payloads():
            row = before.get(cookie)
            if row is not None and row.payload == payload:
                known.append((cookie, row))
                continue
            try:
                fresh[cookie] = payload, read_record(payload)
            except msgspec.DecodeError:
                # Being written: the next look sees it whole.
                continue
        figures = self._figures(known, fresh)
        for cookie, row in known:
            if self._update(cookie, row, figures.get(cookie)):
                self._rows[cookie] = row
        self._add(fresh, figures)

    def _figures(
        self,
        known: list[tuple[int, Row]],
        fresh: dict[int, tuple[bytes, ConnectionRecord]],
    ) -> dict[int, Figures]:
        """Of all that live, by cookie; of the host's sockets and of each workload that has any."""
        wanted: dict[int | None, set[int]] = {}
        records = [row.record for _, row in known if row.record is not None]
        for record in (*records, *(record for _, record in fresh.values())):
            if record.path != "denied":
                place = None if record.path == "fast" else record.workload
                wanted.setdefault(place, set()).add(record.cookie)
        found: dict[int, Figures] = {}
        for place, cookies in wanted.items():
            if place is None:
                found.update(dump_figures(cookies))
                continue
            workload = self._registry.workloads.get(place)
            if workload is None:
                continue
            try:
                with in_namespace(workload.netns_fd):
                    found.update(dump_figures(cookies))
            except OSError as error:
                log.debug("sockets of %s not listed: %s", workload.state.name, error)
        return found

    def _update(self, cookie: int, row: Row, figures: Figures | None) -> bool:
        """Bring a row up to date; False when its connection is over."""
        if figures is None:
            return row.connection.path == "denied"
        state = STATE_NAMES.get(figures.state, str(figures.state))
        if state != row.connection.state:
            row.connection = msgspec.structs.replace(row.connection, state=state)
            row.changed = self._generation
        traffic = admin.Traffic(cookie, *figures[1:])
        if traffic != row.traffic:
            row.traffic, row.moved = traffic, self._generation
        return True

    def _add(
        self, fresh: dict[int, tuple[bytes, ConnectionRecord]], figures: dict[int, Figures]
    ) -> None:
        if not fresh:
            return
        names = {workload.state.cookie: workload.state.name for workload in self._registry}
        now = time.time()
        sockets = find_sockets(self._registry, (record for _, record in fresh.values()))
        for cookie, (payload, record) in fresh.items():
            sock = sockets.get(cookie)
            if sock is None and record.path != "denied":
                continue
            found = figures.get(cookie)
            self._rows[cookie] = Row(
                payload,
                record,
                describe_connection(record, sock, names, now),
                self._generation,
                admin.Traffic(cookie, *(found[1:] if found is not None else _NO_FIGURES)),
                self._generation,
            )

    def _take_listeners(self, records: Records, before: dict[int, Row]) -> None:
        names = {workload.state.cookie: workload.state.name for workload in self._registry}
        now = time.time()
        for listener in records.listeners():
            row = before.get(listener.cookie)
            if row is None or row.connection.since != listener.created:
                described = describe_listener(listener, names, now)
                traffic = admin.Traffic(listener.cookie, *_NO_FIGURES)
                row = Row(b"", None, described, self._generation, traffic, self._generation)
            self._rows[listener.cookie] = row

    def _since(self, after: int) -> admin.Changes:
        is_whole = after < self._first or after > self._generation or self._has_forgotten(after)
        if is_whole:
            after = 0
        return admin.Changes(
            generation=self._generation,
            is_whole=is_whole,
            at=self._looked,
            rows=[row.connection for row in self._rows.values() if row.changed > after],
            gone=[] if is_whole else self._gone_since(after),
            traffic=[row.traffic for row in self._rows.values() if row.moved > after],
        )

    def _has_forgotten(self, after: int) -> bool:
        """Whether something went since then of which it is not known any more."""
        return len(self._gone) == MAX_GONE and self._gone[0][0] > after

    def _gone_since(self, after: int) -> list[int]:
        found = []
        for generation, cookie in reversed(self._gone):
            if generation <= after:
                break
            if cookie not in self._rows:
                found.append(cookie)
        return found
