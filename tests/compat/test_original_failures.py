"""What the first implementation of the idea failed at (Zhuo et al., NSDI'19): one test each.

What is tested elsewhere anyway is named in ELSEWHERE.
"""

from __future__ import annotations

import ast
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from support.compatibility import Cases
from support.probes import listening, originals, peers, visiting

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.pairs import Both, Pair
    from support.two_hosts import TwoHosts

TESTS = Path(__file__).resolve().parents[1]
pytestmark = [pytest.mark.needs_root, pytest.mark.needs_netns]
COMPATIBILITY = Cases(heading="Where the original failed")
IPV4 = pytest.mark.parametrize("version", [4])

WORKERS = 4
VISITS = 750
"""By each of two containers."""
ELSEWHERE = {
    "accept without room for an address": (
        "compat/test_endings.py",
        "test_each_end_may_close_its_half",
    ),
    "a plain client of a brokered server": (
        "compat/test_plain_peers.py",
        "test_a_plain_client_reaches_a_brokered_listener_with_its_true_address",
    ),
    "a plain server that speaks first, or waits": (
        "compat/test_plain_peers.py",
        "test_a_brokered_client_reaches_a_plain_server",
    ),
    "a non-blocking connect to a dead address": (
        "compat/test_connect.py",
        "test_nonblocking_connect_to_an_address_that_nobody_has",
    ),
    "ghost events of epoll": (
        "compat/test_readiness.py",
        "test_level_triggered_set_that_knew_the_socket_before_connect",
    ),
    "FIONBIO kept over connect": (
        "compat/test_connect.py",
        "test_nonblocking_connect_is_in_progress_then_writable",
    ),
    "a stranger on the host network": (
        "kernel/test_traps.py",
        "test_a_record_from_an_unannounced_address_is_refused",
    ),
    "the broker down": ("netns/test_fallback.py", "test_peer_without_slimd"),
    "a listener of the container's loopback": (
        "compat/test_untouched.py",
        "test_a_loopback_listener_stays_in_its_container",
    ),
}


@pytest.mark.parametrize(("file", "test"), ELSEWHERE.values(), ids=ELSEWHERE)
def test_the_others_are_tested_where_they_belong(file: str, test: str) -> None:
    tree = ast.parse((TESTS / file).read_text())
    assert test in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@IPV4
def test_peers_are_right_under_preforking_load(hosts: TwoHosts, pair: Pair, port: int) -> None:
    """Two containers, four workers, 1,500 connections; the original mislabelled 30 per cent."""
    server = pair.server.probe(listening.prefork, pair.anywhere, port, WORKERS)
    server.result()
    where = (pair.address, port, VISITS)
    found = [each.probe(visiting.visit_often, *where) for each in (pair.client, pair.server)]
    workers: set[int] = set()
    for running in found:
        seen = running.result()
        assert seen["wrong"] == []
        assert sum(count for _, count in seen["served"]) == VISITS
        workers |= {pid for pid, _ in seen["served"]}
    assert len(workers) > 1


@IPV4
def test_thread_that_connects_beside_one_that_accepts(pair: Pair, port: int) -> None:
    running = pair.client.probe(
        originals.connect_while_accepting, pair.address, pair.port, pair.anywhere, port
    )
    (greeting,) = running.result()
    pair.check_addresses(greeting)
    assert pair.server.call(peers.visit_plainly, pair.client.address4, port) == "closed"


def serve(both: Both, compiled: Callable[[str, str], str], case: str, port: int) -> dict[str, Any]:
    """What a server of targets/inheriting.c and its one client show."""
    program = compiled("inheriting", "dynamic")

    def play(pair: Pair) -> dict[str, Any]:
        running = pair.server.start(program, case, pair.anywhere, str(port))
        assert running.line() == "waiting"
        client = pair.client.call(peers.visit_plainly, pair.address, port)
        return {"client": client, "server": running.lines()}

    found: dict[str, Any] = both.same(play)
    return found


@pytest.mark.needs_program("cc")
@IPV4
@pytest.mark.parametrize("case", ["duplicate-listener", "exec-listener"])
def test_listener_behind_another_descriptor_or_program(
    both: Both, compiled: Callable[[str, str], str], port: int, case: str
) -> None:
    assert serve(both, compiled, case, port) == {"client": "echoed", "server": ["accept: ok"]}


@IPV4
def test_tcp_info_is_that_of_the_connection(pair: Pair) -> None:
    seen = pair.call(originals.told_by_tcp_info)
    assert seen["acked"] >= originals.MANY_BYTES
    assert seen["received"] >= originals.MANY_BYTES
