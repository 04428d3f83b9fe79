"""The vocabulary of events: what they look like outside."""

from __future__ import annotations

import json
import logging
import time

import msgspec
import pytest

from slim.broker import events
from slim.broker.events import KINDS, Event, describe, kind_of, level_of
from support.happenings import ONE_OF_EACH, opened

_decoder: msgspec.json.Decoder[Event] = msgspec.json.Decoder(Event)


def test_the_examples_are_one_of_every_kind() -> None:
    assert [kind_of(event) for event in ONE_OF_EACH] == [*KINDS]


@pytest.mark.parametrize("event", ONE_OF_EACH, ids=kind_of)
def test_an_event_is_the_same_after_a_way_through_json(event: Event) -> None:
    text = msgspec.json.encode(event)
    assert _decoder.decode(text) == event
    fields = json.loads(text)
    assert fields["event"] == kind_of(event)
    assert {*fields} == {"event", *event.__struct_fields__}


@pytest.mark.parametrize("event", ONE_OF_EACH, ids=kind_of)
def test_every_kind_has_words_that_name_what_it_is_about(event: Event) -> None:
    words = describe(event)
    assert words
    assert not words.endswith(".")
    about = ("workload", "rule", "reason", "count", "epoch", "pid", "plugin", "peer_host")
    told = [str(getattr(event, field)) for field in about if hasattr(event, field)]
    assert any(text and text in words for text in told)


def test_an_event_is_of_now_unless_it_says_otherwise() -> None:
    before = time.time()
    assert before <= events.PeerConnected(peer_host="b").time <= time.time()


@pytest.mark.parametrize(
    ("event", "level"),
    [
        (opened(), logging.DEBUG),
        (opened(path="denied"), logging.INFO),
        (events.PeerConnected(peer_host="b"), logging.INFO),
        (events.PathFailed(host_peer="192.0.2.2:1", reason="timed out"), logging.WARNING),
    ],
)
def test_how_loud_an_event_is(event: Event, level: int) -> None:
    assert level_of(event) == level


def test_an_incoming_connection_points_here() -> None:
    assert "10.1.0.2:40000 <- 10.1.1.2:80" in describe(opened(direction="in"))
    assert "10.1.0.2:40000 -> 10.1.1.2:80" in describe(opened())
