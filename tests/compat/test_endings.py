"""Half-close, reset, linger, and options set before connect and listen: targets/endings.c."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support.compatibility import Cases

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.pairs import Both, Pair

pytestmark = [
    pytest.mark.needs_root,
    pytest.mark.needs_netns,
    pytest.mark.needs_program("cc"),
]
COMPATIBILITY = Cases(heading="Ends of connections, and options")


def play(pair: Pair, program: str, case: str, port: int) -> dict[str, list[str]]:
    """What each end showed of a case."""
    server = pair.server.start(program, case, pair.anywhere, str(port))
    assert server.line() == "waiting"
    client = pair.client.run(program, f"client-{case}", pair.address, str(port))
    return {"client": client, "server": server.lines()}


@pytest.fixture
def played(
    both: Both, compiled: Callable[[str, str], str], port: int
) -> Callable[[str], dict[str, list[str]]]:
    """Plays a case with both ends of the same side; gives what each end showed natively."""
    program = compiled("endings", "dynamic")

    def both_play(case: str) -> dict[str, list[str]]:
        found: dict[str, list[str]] = both.same(lambda pair: play(pair, program, case, port))
        return found

    return both_play


def test_each_end_may_close_its_half(played: Callable[[str], dict[str, list[str]]]) -> None:
    seen = played("half-close")
    assert seen["server"][:3] == ["request: ok", "its end: 0", "answer: ok"]
    assert seen["client"][2:5] == ["after that: -1 EPIPE", "answer: ok", "its end: 0"]


def test_reset_by_linger_is_seen_as_such(played: Callable[[str], dict[str, list[str]]]) -> None:
    assert played("reset")["server"][0] == "SO_ERROR: ECONNRESET"


@pytest.mark.differs(
    "accept gives the next connection: with what the reset took went the record of who it was"
)
def test_reset_before_accept(both: Both, compiled: Callable[[str, str], str], port: int) -> None:
    program = compiled("endings", "dynamic")
    assert play(both.native, program, "early", port)["server"] == ["read: -1 ECONNRESET"]
    assert play(both.brokered, program, "early", port)["server"] == ["read: ok"]


def test_close_with_unread_data_resets(played: Callable[[str], dict[str, list[str]]]) -> None:
    assert played("unread")["server"][-1] == "read: -1 ECONNRESET"


def test_write_after_a_reset_is_a_broken_pipe(
    played: Callable[[str], dict[str, list[str]]],
) -> None:
    assert played("broken")["server"][-2:] == ["write: -1 EPIPE", "signals: 1"]


def test_close_that_lingers_loses_nothing(played: Callable[[str], dict[str, list[str]]]) -> None:
    assert played("linger")["server"] == ["end: 0", f"bytes: {1 << 20}"]


@pytest.mark.parametrize("version", [4])
def test_options_set_before_connect_and_listen_hold_afterwards(
    played: Callable[[str], dict[str, list[str]]],
) -> None:
    seen = played("options")
    assert "IP_TTL: 33" in seen["client"]
    assert seen["server"].count("TCP_KEEPIDLE: 77") == 2
