"""Which connections on record are over: what control tells traps to forget.

Looks at cookies only, and at one record after the other: the host's sockets may be ten thousands,
most of them in TIME_WAIT, and a look must not grow slimd by as many objects.
"""

from __future__ import annotations

import logging
import time
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


class Sweep:
    """Which records may be forgotten: gone from sock_diag in two looks running.

    In one look a record may be newer than the list of sockets.
    """

    def __init__(self) -> None:
        self._missing: set[int] = set()

    def find(
        self, records: Iterable[ConnectionRecord], is_alive: Callable[[ConnectionRecord], bool]
    ) -> list[int]:
        """Their cookies. Takes milliseconds per thousand records: run it beside the event loop."""
        now = time.time()
        missing = set()
        gone = []
        for record in records:
            if record.path == "denied":
                # The clock may have been set back since.
                if not 0 <= now - record.created <= DENIED_KEPT_S:
                    gone.append(record.cookie)
            elif not is_alive(record):
                if record.cookie in self._missing:
                    gone.append(record.cookie)
                else:
                    missing.add(record.cookie)
        self._missing = missing
        return gone
