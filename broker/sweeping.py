"""Which connections on record are over: what control tells traps to forget.

Looks at cookies only, and at one record after the other: the host's sockets may be ten thousands,
most of them in TIME_WAIT, and a look must not grow slimd by as many objects.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from slim.broker.kernel.namespaces import in_namespace
from slim.broker.kernel.sock_diag import ALL_STATES, cookies_alive

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from slim.broker.connections import ConnectionRecord
    from slim.broker.registry import Registry

log = logging.getLogger(__name__)

DENIED_KEPT_S = 60.0


class Living:
    """The cookies of all TCP sockets at one moment, by the namespace they are in."""

    def __init__(self, registry: Registry, states: int = ALL_STATES) -> None:
        """`states`: a mask of 1 << state; others are not looked for."""
        self._registry = registry
        self._states = states
        self._by_place: dict[int | None, set[int]] = {}

    def has(self, record: ConnectionRecord) -> bool:
        """Whether the socket of a connection that was not denied is in the kernel's tables."""
        place = None if record.path == "fast" else record.workload
        cookies = self._by_place.get(place)
        if cookies is None:
            cookies = self._by_place[place] = self._look(place)
        return record.cookie in cookies

    def _look(self, place: int | None) -> set[int]:
        if place is None:
            return cookies_alive(states=self._states)
        workload = self._registry.workloads.get(place)
        if workload is None:
            return set()
        try:
            with in_namespace(workload.netns_fd):
                return cookies_alive(states=self._states)
        except OSError as error:
            log.debug("sockets of %s not listed: %s", workload.state.name, error)
            return set()


@dataclass(frozen=True, slots=True)
class Swept:
    """What one look found."""

    ended: list[ConnectionRecord]
    """Over for their programs; the kernel may keep them for a minute in TIME_WAIT."""
    gone: list[ConnectionRecord]
    """In the kernel's tables no more: these may be forgotten."""


class Sweep:
    """Which connections are over, each end told once: missing in two looks running.

    In one look a record may be newer than the list of sockets.
    """

    def __init__(self) -> None:
        self._missing: set[int] = set()
        self._not_open: set[int] = set()
        self._ended: set[int] = set()
        """Told, and still on record."""

    def find(
        self,
        records: Iterable[ConnectionRecord],
        is_open: Callable[[ConnectionRecord], bool],
        is_alive: Callable[[ConnectionRecord], bool],
    ) -> Swept:
        """What is open is alive. Milliseconds per thousand records: run it beside the loop."""
        now = time.time()
        missing, not_open, still_ended = set[int](), set[int](), set[int]()
        found = Swept([], [])
        for record in records:
            cookie = record.cookie
            if record.path == "denied":
                # The clock may have been set back since.
                if not 0 <= now - record.created <= DENIED_KEPT_S:
                    found.gone.append(record)
                continue
            if is_open(record):
                continue
            if cookie in self._ended:
                still_ended.add(cookie)
            elif cookie in self._not_open:
                found.ended.append(record)
                still_ended.add(cookie)
            else:
                not_open.add(cookie)
            if is_alive(record):
                continue
            if cookie in self._missing:
                found.gone.append(record)
            # Whoever is to forget it may be slow: then it is found once more.
            missing.add(cookie)
        self._missing, self._not_open, self._ended = missing, not_open, still_ended
        return found

    def find_of(self, records: Iterable[ConnectionRecord], workload: int) -> list[ConnectionRecord]:
        """Connections of a workload that is no more, whose end was not told: it is now."""
        found = [
            record
            for record in records
            if record.workload == workload
            and record.path != "denied"
            and record.cookie not in self._ended
        ]
        self._ended |= {record.cookie for record in found}
        return found
