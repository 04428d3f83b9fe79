"""Where events go: the ring with its numbers, the log, and plugins."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from slim.broker import observing
from slim.broker.events import EventsLost, PathFailed, PeerConnected, PluginFailed
from slim.broker.observing import Observing
from support.happenings import opened

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

    from slim.broker.events import Event

LIMIT_S = 5.0


@dataclass
class FakePlugins:
    """Hears what it is told."""

    heard: list[Event] = field(default_factory=list)
    has_observers: bool = True
    enough: asyncio.Event = field(default_factory=asyncio.Event)
    on_failed: Callable[[str, str, str], None] = lambda plugin, hook, reason: None

    def observe(self, event: Event) -> None:
        self.heard.append(event)
        if len(self.heard) > 200:
            self.enough.set()


def hear(hub: Observing, plugins: FakePlugins) -> None:
    hub.use(cast("Any", plugins))


def numbered(hub: Observing, first: int, last: int) -> None:
    for number in range(first, last + 1):
        hub.publish(opened(cookie=number))


def cookies(found: list[Event]) -> list[int]:
    return [cast("Any", event).cookie for event in found]


def test_events_are_kept_in_order_and_asked_for_by_number() -> None:
    hub = Observing()
    numbered(hub, 1, 5)
    found, last, lost = hub.after(2, 10)
    assert (cookies(found), last, lost) == ([3, 4, 5], 5, 0)
    assert hub.after(5, 10) == ([], 5, 0)


def test_pages_follow_each_other() -> None:
    hub = Observing()
    numbered(hub, 1, 5)
    seen: list[int] = []
    number = 0
    while number < hub.last:
        found, number, lost = hub.after(number, 2)
        assert lost == 0
        seen += cookies(found)
    assert seen == [1, 2, 3, 4, 5]


def test_a_number_of_a_predecessor_gets_everything() -> None:
    hub = Observing()
    numbered(hub, 1, 3)
    found, last, _ = hub.after(900, 10)
    assert (cookies(found), last) == ([1, 2, 3], 3)


def test_who_asks_too_late_learns_how_many_are_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observing, "RING", 4)
    hub = Observing()
    numbered(hub, 1, 10)
    found, last, lost = hub.after(3, 10)
    assert (cookies(found), last, lost) == ([7, 8, 9, 10], 10, 3)


def test_a_flood_is_counted_beyond_the_rate_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(observing, "PER_SECOND", 100)
    monkeypatch.setattr(time, "monotonic", lambda: 50.0)
    hub = Observing()
    numbered(hub, 1, 250)
    found, last, lost = hub.after(0, 1000)
    assert (len(found), last, lost) == (100, 250, 150)
    assert hub.counters["events_lost"] == 150
    assert hub.counters["events connection-opened"] == 250
    monkeypatch.setattr(time, "monotonic", lambda: 51.0)
    numbered(hub, 251, 251)
    found, _, lost = hub.after(last, 1000)
    assert (cookies(found), lost) == ([251], 0)


def test_what_never_came_here_is_a_gap_too() -> None:
    hub = Observing()
    numbered(hub, 1, 1)
    hub.lose(7)
    numbered(hub, 2, 2)
    found, last, lost = hub.after(0, 10)
    assert (cookies(found), last, lost) == ([1, 2], 9, 7)


def test_waiting_ends_with_the_next_event_or_with_the_time() -> None:
    async def wait() -> int:
        hub = Observing()
        await hub.wait(0, 0.01)
        waiting = asyncio.create_task(hub.wait(0, LIMIT_S))
        await asyncio.sleep(0)
        numbered(hub, 1, 1)
        await asyncio.wait_for(waiting, LIMIT_S)
        await hub.wait(0, 60.0)
        return hub.last

    assert asyncio.run(wait()) == 1


def test_plugins_hear_everything_in_order_and_of_what_was_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(observing, "RING", 200)

    async def run() -> list[Event]:
        hub, plugins = Observing(), FakePlugins()
        hear(hub, plugins)
        numbered(hub, 1, 250)
        task = asyncio.create_task(hub.run())
        async with asyncio.timeout(LIMIT_S):
            await plugins.enough.wait()
        task.cancel()
        return plugins.heard

    first, *rest = asyncio.run(run())
    assert isinstance(first, EventsLost)
    assert first.count == 50
    assert cookies(rest) == [*range(51, 251)]


def test_what_was_not_told_yet_is_told_at_the_end() -> None:
    hub, plugins = Observing(), FakePlugins()
    hear(hub, plugins)
    numbered(hub, 1, 3)
    hub.finish()
    assert cookies(plugins.heard) == [1, 2, 3]


def test_a_plugin_that_fails_to_observe_is_no_news_for_observers() -> None:
    hub, plugins = Observing(), FakePlugins()
    hear(hub, plugins)
    plugins.on_failed("mine", "slim_observe", "ValueError: no")
    plugins.on_failed("mine", "slim_decide", "ValueError: no")
    hub.finish()
    assert [cast("PluginFailed", event).hook for event in plugins.heard] == ["slim_decide"]
    assert len(hub.after(0, 10)[0]) == 2


def test_the_log_has_an_event_s_words_and_fields(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    Observing().publish(PeerConnected(peer_host="b"))
    Observing().publish(opened())
    (record,) = caplog.records
    assert record.getMessage() == "channel to b is up"
    assert vars(record)["event"] == "peer-connected"
    assert vars(record)["fields"] == {"peer_host": "b"}


def test_the_log_is_not_flooded(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "monotonic", lambda: 50.0)
    hub = Observing()
    for _ in range(100):
        hub.publish(PathFailed(host_peer="192.0.2.2:1", reason="timed out"))
    assert len(caplog.records) == observing.LOGGED_PER_SECOND
    monkeypatch.setattr(time, "monotonic", lambda: 51.0)
    hub.publish(PathFailed(host_peer="192.0.2.2:1", reason="timed out"))
    assert caplog.records[-2].getMessage() == "80 more events path-failed"
