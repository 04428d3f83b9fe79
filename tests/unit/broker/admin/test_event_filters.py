"""The filter language, for events."""

from __future__ import annotations

import pytest

from slim.broker.admin.event_filters import event_language
from slim.broker.admin.filters import FilterError
from slim.broker.events import kind_of
from support.happenings import ONE_OF_EACH, opened


@pytest.mark.parametrize(
    ("source", "kinds"),
    [
        ("event:path-failed", ["path-failed"]),
        ("event:peer-*", ["peer-connected", "peer-disconnected", "peer-failed"]),
        ("event:peer-* -event:peer-failed", ["peer-connected", "peer-disconnected"]),
        ("workload:db", ["source-denied"]),
        ("src:10.1.0.0/24", ["connection-opened", "connection-closed"]),
        ("dst:10.1.1.2 port:80", ["connection-opened", "connection-closed"]),
        ("port:81", []),
        ("src:web event:*-opened", ["connection-opened"]),
        ("path:fast", ["connection-opened", "connection-closed"]),
        ("verdict:deny", []),
        ("rule:rules:no", ["connections-cut", "source-denied", "would-deny"]),
        ("peer:b dir:out", ["connection-opened", "connection-closed"]),
        ("reason:*refused*", ["peer-failed"]),
        ("container:c0", ["container-started", "container-ended"]),
        ("plugin:m*", ["plugin-failed"]),
        ("id:9", ["listener-up", "listener-gone"]),
        (
            "reason:*",
            ["peer-disconnected", "peer-failed", "path-failed", "config-refused", "plugin-failed"],
        ),
        ("refused", ["peer-failed", "config-refused"]),
        ("/lost here$/", ["events-lost"]),
    ],
)
def test_a_filter_holds_for_these(source: str, kinds: list[str]) -> None:
    matches = event_language().compile(source)
    assert [kind_of(event) for event in ONE_OF_EACH if matches(event)] == kinds


def test_an_event_of_a_denied_connection_is_found_by_path_and_verdict() -> None:
    matches = event_language().compile("path:denied verdict:deny")
    assert matches(opened(path="denied", verdict="deny"))


@pytest.mark.parametrize(
    ("source", "hint"),
    [
        ("event:connected", "event: the kinds are config-refused, "),
        ("kind:x", "the keys are event, workload, "),
        ("port:http", "port: write a number"),
    ],
)
def test_a_mistake_says_what_would_be_right(source: str, hint: str) -> None:
    with pytest.raises(FilterError) as caught:
        event_language().compile(source)
    assert caught.value.hint.startswith(hint)
