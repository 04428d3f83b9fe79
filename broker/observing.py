"""Where events go: the log, a bounded ring for the tools, and plugins; never in anybody's way.

`publish` costs microseconds and never waits. Events beyond a rate, and those that nobody fetched
in time, are lost and counted: every event has a number, and who finds a gap knows how many.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections import Counter, deque
from typing import TYPE_CHECKING

from slim.broker.events import AnyEvent, EventsLost, PluginFailed, describe, kind_of, level_of

if TYPE_CHECKING:
    from slim.broker.events import Event
    from slim.broker.plugin_manager import Plugins

log = logging.getLogger("slim.events")

RING = 8192
PER_SECOND = 5000
"""More than so many events in a second are counted, not kept."""
LOGGED_PER_SECOND = 20
"""Of each kind."""
SLICE = 100
"""Events that plugins hear of between two turns of the loop."""
PAUSE_S = 0.05


def ignore(event: Event) -> None:
    """Where nobody wants to know."""


class Observing:
    """Used in control's loop only; `run` is its one task."""

    def __init__(self) -> None:
        self._ring: deque[tuple[int, Event]] = deque(maxlen=RING)
        self._last = 0
        self._second = 0
        self._in_second = 0
        self._logged: Counter[str] = Counter()
        self._news = asyncio.Event()
        """Set, and replaced by another, whenever there is a new event."""
        self._told = 0
        """The number up to which plugins heard."""
        self._plugins: Plugins | None = None
        self.counters: Counter[str] = Counter()

    @property
    def last(self) -> int:
        """The number of the newest event, kept or lost."""
        return self._last

    def use(self, plugins: Plugins) -> None:
        """These plugins hear of events from now on."""
        self._plugins = plugins
        plugins.on_failed = lambda plugin, hook, reason: self.publish(
            PluginFailed(plugin=plugin, hook=hook, reason=reason)
        )

    def publish(self, event: Event) -> None:
        """Tell everybody, soon; never raises, never waits."""
        self._last += 1
        kind = kind_of(event)
        self.counters[f"events {kind}"] += 1
        second = int(time.monotonic())
        if second != self._second:
            self._next_second(second)
        self._in_second += 1
        if self._in_second > PER_SECOND:
            self.counters["events_lost"] += 1
            return
        self._ring.append((self._last, event))
        self._log(kind, event)
        self._news.set()
        self._news = asyncio.Event()

    def lose(self, count: int) -> None:
        """So many events could not be published: whoever asks finds a gap."""
        self._last += count
        self.counters["events_lost"] += count

    def after(self, number: int, limit: int) -> tuple[list[Event], int, int]:
        """Up to `limit` events behind that number: they, the last number, how many are missing.

        A number that is not reached yet is a predecessor's: all that is there is news.
        """
        if number > self._last:
            number = 0
        # The newest are asked for most: the ring is walked from its end.
        behind = 0
        for each, _ in reversed(self._ring):
            if each <= number:
                break
            behind += 1
        start = len(self._ring) - behind
        found = [*itertools.islice(self._ring, start, start + limit)]
        # What was lost behind the newest is known to be lost once that one was told.
        at = found[-1][0] if len(found) < behind else self._last
        return [event for _, event in found], at, at - number - len(found)

    async def wait(self, number: int, limit_s: float) -> None:
        """Until there is an event behind that number, or the time is up."""
        if self._last > number:
            return
        try:
            async with asyncio.timeout(limit_s):
                await self._news.wait()
        except TimeoutError:
            return

    async def run(self) -> None:
        """Tell plugins, a slice at a time."""
        while True:
            await self.wait(self._told, 3600.0)
            # Many at once cost less than one at a time.
            await asyncio.sleep(PAUSE_S)
            while self._told < self._last:
                self._tell_plugins()
                await asyncio.sleep(0)

    def finish(self) -> None:
        """Tell plugins what they have not heard yet."""
        while self._told < self._last:
            self._tell_plugins()

    def _tell_plugins(self) -> None:
        found, self._told, lost = self.after(self._told, SLICE)
        plugins = self._plugins
        if plugins is None or not plugins.has_observers:
            return
        if lost:
            plugins.observe(EventsLost(count=lost))
        for event in found:
            # What observing itself comes to is in the log: else it would never end.
            if not isinstance(event, PluginFailed) or event.hook != "slim_observe":
                plugins.observe(event)

    def _log(self, kind: str, event: Event) -> None:
        level = level_of(event)
        # A failed plugin is logged where it failed, with the traceback.
        if not log.isEnabledFor(level) or isinstance(event, PluginFailed):
            return
        self._logged[kind] += 1
        if self._logged[kind] <= LOGGED_PER_SECOND:
            log.log(level, "%s", describe(event), extra=_fields(kind, event))

    def _next_second(self, second: int) -> None:
        self._second, self._in_second = second, 0
        for kind, count in self._logged.items():
            if count > LOGGED_PER_SECOND:
                log.warning("%d more events %s", count - LOGGED_PER_SECOND, kind)
        self._logged.clear()


def _fields(kind: str, event: AnyEvent) -> dict[str, object]:
    """For the log's JSON: the event's fields, beside its kind."""
    own = {field: getattr(event, field) for field in event.__struct_fields__ if field != "time"}
    return {"event": kind, "fields": own}
