"""epoll, poll and select, before, during and after connect and accept: targets/readiness.c."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support.compatibility import Cases
from support.probes import peers

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.pairs import Both, Pair

pytestmark = [
    pytest.mark.needs_root,
    pytest.mark.needs_netns,
    pytest.mark.needs_program("cc"),
]
COMPATIBILITY = Cases(heading="Readiness")
IPV4 = pytest.mark.parametrize("version", [4])
FREE_PORT = 8998


@pytest.fixture
def connecting(both: Both, compiled: Callable[[str, str], str]) -> Callable[[str], list[str]]:
    """Plays a case of a client against the greeting server, natively and under Slim."""
    program = compiled("readiness", "dynamic")

    def play(case: str) -> list[str]:
        found: list[str] = both.same(
            lambda pair: pair.client.run(program, case, pair.address, str(pair.port))
        )
        return found

    return play


@pytest.fixture
def accepting(
    both: Both, compiled: Callable[[str, str], str], port: int
) -> Callable[[str], list[str]]:
    """Plays a case of a server that two clients visit, one after the other."""
    program = compiled("readiness", "dynamic")

    def play(pair: Pair, case: str) -> list[str]:
        running = pair.server.start(program, case, pair.anywhere, str(port))
        lines = []
        for _ in range(2):
            while (line := running.line()) != "waiting":
                lines.append(line)
            lines.append(pair.client.call(peers.visit_plainly, pair.address, port))
        return lines + running.lines()

    def both_play(case: str) -> list[str]:
        found: list[str] = both.same(lambda pair: play(pair, case))
        return found

    return both_play


def test_level_triggered_set_that_knew_the_socket_before_connect(
    connecting: Callable[[str], list[str]],
) -> None:
    seen = connecting("level")
    assert seen[2:6] == [
        "connect: -1 EINPROGRESS",
        "connected: 1",
        "connected 1: out",
        "once more: 1",
    ]
    assert "registered twice: -1 EEXIST" in seen


def test_edge_triggered_set_that_knew_the_socket_before_connect(
    connecting: Callable[[str], list[str]],
) -> None:
    seen = connecting("edge")
    assert seen[seen.index("connected 1: out") + 1] == "once more: 0"


def test_one_shot_registration_from_before_connect_fires_once(
    connecting: Callable[[str], list[str]],
) -> None:
    seen = connecting("oneshot")
    assert seen[seen.index("connected 1: out") + 1] == "once more: 0"


def test_socket_in_two_sets(connecting: Callable[[str], list[str]]) -> None:
    assert "second 2: in" in connecting("several")


def test_socket_registered_by_a_copy_of_its_descriptor(
    connecting: Callable[[str], list[str]],
) -> None:
    assert "connect of the copy: 0" in connecting("duplicate")


@IPV4
def test_set_within_a_set(connecting: Callable[[str], list[str]]) -> None:
    assert "outer 2: in" in connecting("nested")


@IPV4
def test_select_of_a_nonblocking_connect(connecting: Callable[[str], list[str]]) -> None:
    assert connecting("select")[:3] == ["connect: -1 EINPROGRESS", "select: 1", "SO_ERROR: 0"]


@IPV4
def test_poll_before_and_after_connect_and_at_the_end(
    connecting: Callable[[str], list[str]],
) -> None:
    seen = connecting("poll")
    assert seen[:2] == ["poll: 1", "before: out hup"]
    assert seen[-1] == "after the server's end: in hup rdhup"


def test_edge_triggered_set_hears_of_a_refusal(
    both: Both, compiled: Callable[[str, str], str]
) -> None:
    program = compiled("readiness", "dynamic")
    seen = both.same(lambda pair: pair.client.run(program, "refused", pair.address, str(FREE_PORT)))
    assert "SO_ERROR: 0" in seen


@pytest.mark.parametrize("kind", ["level", "edge", "oneshot"])
@IPV4
def test_listener_in_a_set_from_before_listen(
    accepting: Callable[[str], list[str]], kind: str
) -> None:
    seen = accepting(f"accept-{kind}")
    assert "accept: -1 EAGAIN" in seen
    assert seen.count("accept: ok") == 2
