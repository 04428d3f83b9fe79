"""filters: what a term means, and what is said of one that means nothing."""

from __future__ import annotations

import pytest

from slim.broker.admin.filters import (
    MAX_FILTER,
    FilterError,
    Names,
    connection_language,
    container_language,
)
from support.fake_admin import connection, container, listener

OUT = connection(cookie=1, reason="")
IN = connection(
    cookie=2,
    direction="in",
    workload="db",
    overlay_local="10.1.1.2:80",
    overlay_peer="10.1.0.2:40000",
    path="fallback",
    reason="tfo-off",
)
OTHER = connection(cookie=3, overlay_local="[fd00::2]:40001", overlay_peer="[fd00:1::2]:5432")
UNKNOWN = connection(cookie=4, overlay_local="", overlay_peer="10.1.1.9:80")
LISTENER = listener(cookie=5, workload="cache", overlay_local="10.1.3.3:6379")
ROWS = (OUT, IN, OTHER, UNKNOWN, LISTENER)


@pytest.mark.parametrize(
    ("source", "cookies"),
    [
        ("", {1, 2, 3, 4, 5}),
        ("workload:web", {1, 3, 4}),
        ("workload:web workload:db", {1, 2, 3, 4}),
        ("workload:[wd]*b", {1, 2, 3, 4}),
        ("src:10.1.0.2", {1, 2}),
        ("src:web", {1, 3, 4}),
        ("dst:10.1.1.0/24", {1, 2, 4}),
        ("dst:fd00:1::/32", {3}),
        ("dst:cach?", {5}),
        ("port:80 src:10.1.0.0/24", {1, 2}),
        ("port:5432 workload:db", set()),
        ("path:fallback", {2}),
        ("-path:fallback !dir:listen", {1, 3, 4}),
        ("workload:web -port:80 -port:22", {3}),
        ("id:3", {3}),
        ("TFO", {2}),
        ("fd00:1::2", {3}),
        ("10.1.1.9:80", {4}),
        ("fd00 web", {3}),
        (r"/:54\d\d /", {3}),
        (r"-/:80( |$)/ dir:out", {3}),
    ],
)
def test_terms_choose_connections(source: str, cookies: set[int]) -> None:
    holds = connection_language().compile(source)
    assert {row.cookie for row in ROWS if holds(row)} == cookies


def test_the_far_end_has_the_name_that_its_own_overlay_gives_it() -> None:
    near = container(workload="web", overlay="blue", addresses=["10.1.0.2"])
    far = container(workload="db", overlay="blue", addresses=["10.1.1.9"])
    stranger = container(workload="other", overlay="red", addresses=["10.1.1.9"])
    language = connection_language(Names([near, far, stranger]))
    assert language.compile("dst:d*")(UNKNOWN)
    assert not language.compile("dst:other")(UNKNOWN)
    assert not connection_language().compile("dst:db")(UNKNOWN)


@pytest.mark.parametrize(
    ("source", "position", "hint"),
    [
        ("host:a", 1, "the keys are workload, process, src"),
        ("web port:http", 10, "port: write a number"),
        ("port:²", 6, "write a number"),
        ("id:-1", 4, "write a number"),
        ("-path:slow", 7, "fast, fallback, denied"),
        ("src:10.1", 5, "a name (db*), an address or a network"),
        ("src:10.1.0.1/8", 5, "a name (db*), an address or a network"),
        ("src:", 5, "a value follows the colon"),
        ("a /b", 3, "write /regex/"),
        ("/usr/bin", 1, "write /regex/"),
        ("ab /x(/", 6, "Python regex"),
        ("--yes", 1, "one - or !"),
        ("x" * (MAX_FILTER + 1), MAX_FILTER + 1, "at most"),
    ],
)
def test_a_mistake_is_told_with_its_place_and_what_is_right(
    source: str, position: int, hint: str
) -> None:
    with pytest.raises(FilterError) as told:
        connection_language().compile(source)
    assert told.value.position == position
    assert f"character {position}:" in told.value.message
    assert hint in told.value.hint


@pytest.mark.parametrize(
    ("source", "held"),
    [
        ("container:ab", True),
        ("container:b", False),
        ("label:app", True),
        ("label:app=sh*", True),
        ("label:app=web", False),
        ("address:10.1.0.0/16", True),
        ("address:10.2.0.0/16", False),
        ("pid:7", True),
        ("command:nginx", True),
        ("isolated:egress", False),
        ("-isolated:ingress", False),
        ("daemon", True),
    ],
)
def test_terms_choose_containers(source: str, held: bool) -> None:
    row = container(
        container="abc",
        labels={"app": "shop"},
        addresses=["10.1.0.2"],
        pid=7,
        command=["nginx", "daemon off"],
        isolated=["ingress"],
    )
    assert container_language().compile(source)(row) is held
