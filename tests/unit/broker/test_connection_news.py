"""Connections as events: what traps wrote, and what is over."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import msgspec
import pytest

from slim.broker.connection_news import SLICE, ConnectionNews
from slim.broker.connections import SLOT_BYTES, ConnectionRecord, pack
from slim.broker.endpoints import Endpoint
from slim.broker.events import ConnectionClosed, ConnectionOpened
from slim.broker.news_ring import NewsRing
from slim.broker.observing import Observing
from support.brokering import FakePlugins, registry

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def ring() -> Iterator[NewsRing]:
    made = NewsRing.create("slim-test", slot_bytes=SLOT_BYTES, slots=1024)
    yield made
    made.close()


def record(cookie: int, **changed: Any) -> ConnectionRecord:
    made = ConnectionRecord(
        cookie=cookie,
        workload=1,
        direction="out",
        local=pack(Endpoint.parse("10.77.1.5:40000")),
        peer=pack(Endpoint.parse("10.77.2.7:80")),
        host_peer=pack(Endpoint.parse("192.0.2.2:20001")),
        peer_host="b",
        path="fast",
        reason="",
        rule="rules:web",
        pid=4711,
        created=1000.0,
    )
    return msgspec.structs.replace(made, **changed)


def write(ring: NewsRing, *records: ConnectionRecord) -> None:
    for each in records:
        ring.write(150, msgspec.msgpack.encode(each))


def make() -> tuple[ConnectionNews, Observing]:
    hub = Observing()
    return ConnectionNews(registry(FakePlugins()), cast("Any", None), hub), hub


def test_a_record_becomes_an_event_with_the_same_facts(ring: NewsRing) -> None:
    news, hub = make()
    write(ring, record(7))
    news.look(ring)
    ((event,), _, _) = hub.after(0, 10)
    assert event == ConnectionOpened(
        time=1000.0,
        direction="out",
        workload="1",
        pid=4711,
        overlay_local="10.77.1.5:40000",
        overlay_peer="10.77.2.7:80",
        host_peer="192.0.2.2:20001",
        peer_host="b",
        path="fast",
        reason="",
        verdict="allow",
        rule="rules:web",
        cookie=7,
        setup_us=150,
    )


def test_what_is_not_known_is_empty(ring: NewsRing) -> None:
    news, hub = make()
    write(ring, record(7, path="denied", local=pack(None), host_peer=pack(None)))
    news.look(ring)
    event = cast("ConnectionOpened", hub.after(0, 10)[0][0])
    assert (event.overlay_local, event.host_peer, event.verdict) == ("", "", "deny")


def test_more_than_a_slice_takes_more_than_one_look(ring: NewsRing) -> None:
    news, hub = make()
    write(ring, *(record(number) for number in range(SLICE + 5)))
    news.look(ring)
    assert hub.last == SLICE
    news.look(ring)
    assert hub.last == SLICE + 5


def test_what_was_overwritten_or_unreadable_is_counted(ring: NewsRing) -> None:
    news, hub = make()
    write(ring, *(record(number) for number in range(1024 + 30)))
    ring.write(1, b"\xc1")
    while ring.seen < ring.written:
        news.look(ring)
    assert hub.last == 1024 + 31
    assert hub.counters["events_lost"] == 32


def test_the_end_of_a_connection_has_its_duration() -> None:
    news, hub = make()
    news.ended([record(7)])
    ((event,), _, _) = hub.after(0, 10)
    assert isinstance(event, ConnectionClosed)
    assert event.cookie == 7
    assert event.duration_s > 0
