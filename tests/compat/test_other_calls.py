"""Calls of i386 and x32, which x86_64 programs may make, too: targets/i386.c and mixed.c.

i386's calls are brokered as those of x86_64 are, also on the same socket. x32's are refused. None
is taken for the call of x86_64 that has its number.
"""

from __future__ import annotations

import json
import platform
from typing import TYPE_CHECKING, Any

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
    pytest.mark.skipif(platform.machine() != "x86_64", reason="i386 and x32 are x86_64's"),
    pytest.mark.parametrize("version", [4]),
]
COMPATIBILITY = Cases(heading="Calls of i386 and x32")
FLAVOURS = pytest.mark.parametrize("flavour", ["freestanding", "freestanding-i386"])
WAYS = pytest.mark.parametrize("way", ["", "socketcall-"])


@FLAVOURS
@WAYS
def test_client_of_i386(
    pair: Pair, compiled: Callable[[str, str], str], flavour: str, way: str
) -> None:
    program = compiled("i386", flavour)
    (seen,) = pair.client.run(program, f"{way}connect", pair.address, str(pair.port))
    pair.check_addresses(json.loads(seen))


@FLAVOURS
@WAYS
def test_server_of_i386(
    pair: Pair, compiled: Callable[[str, str], str], flavour: str, way: str, port: int
) -> None:
    running = pair.server.start(compiled("i386", flavour), f"{way}serve", pair.anywhere, str(port))
    assert running.line() == "waiting"
    greeting = pair.call_at(port, peers.visit)
    assert running.lines() == []
    assert greeting["peer"] == greeting["accepted"] == greeting["client_name"]
    assert greeting["name"] == greeting["client_peer"] == peers.endpoint((pair.address, port))
    assert greeting["path"] == pair.path


@FLAVOURS
def test_call_of_i386_is_not_taken_for_one_of_x86_64(
    both: Both, compiled: Callable[[str, str], str], flavour: str
) -> None:
    program = compiled("i386", flavour)

    def play(pair: Pair) -> list[str]:
        *numbers, seen = pair.client.run(program, "numbers", pair.address, str(pair.port))
        pair.check_addresses(json.loads(seen))
        return numbers

    assert both.same(play)[:4] == ["42: error 14", "43: error 14", "49: ok", "50: ok"]


def test_names_by_i386_of_a_connection_of_x86_64(
    both: Both, compiled: Callable[[str, str], str]
) -> None:
    program = compiled("mixed", "dynamic")
    seen = both.same(lambda pair: pair.client.run(program, "names", pair.address, str(pair.port)))
    assert seen[-4:] == ["name: client", "peer: server"] * 2


@pytest.mark.parametrize("case", ["accepts", "socketcall-accepts"])
def test_accept_by_i386_on_a_listener_of_x86_64(
    both: Both, compiled: Callable[[str, str], str], port: int, case: str
) -> None:
    program = compiled("mixed", "dynamic")

    def play(pair: Pair) -> dict[str, Any]:
        running = pair.server.start(program, case, pair.anywhere, str(port))
        assert running.line() == "waiting"
        client = pair.call_at(port, peers.visit_plainly)
        return {"client": client, "server": running.lines()}

    assert both.same(play) == {
        "client": "echoed",
        "server": ["accept: ok", "from: client", "read: 100", "peer: client"],
    }


@pytest.mark.differs("ENOSYS, as from a kernel that is built without x32")
def test_call_of_x32(both: Both, compiled: Callable[[str, str], str]) -> None:
    """Natively a kernel with x32 would make these calls."""
    program = compiled("mixed", "dynamic")
    pair = both.brokered
    seen = pair.client.run(program, "x32", pair.address, str(pair.port))
    *refused, connected = seen[: seen.index("connect of x86_64: 0") + 1]
    assert connected
    assert len(refused) == 10
    assert all(line.endswith(": -1 ENOSYS") for line in refused)
    assert "connection: greeted by name" in seen
    assert "path: host" in seen
