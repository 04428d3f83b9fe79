"""What slimd's processes hold is back where it was when the programs are done."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from slim.broker.observing import RING
from support.measuring import Holdings, holdings
from support.polling import eventually
from support.probes import listening, peers, visiting

if TYPE_CHECKING:
    from support.two_hosts import TwoHosts, Workload

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_netns]

PORT = 8000
CONNECTIONS = 10_000
PARTS = 5
THREADS = 8
STARTS = 200
ROLES = ("control", "traps", "keeper")
MOST_GROWTH_KIB = 5 * 1024
"""Thirty thousand connections take traps no more than ten thousand: tables that are full once."""
POOL_THREADS = min(32, (os.cpu_count() or 1) + 4) + 1
"""Control's loop, and the pool of threads that asyncio fills as it needs them."""


@pytest.fixture(scope="module")
def greeting_server(server: Workload) -> Workload:
    server.probe(peers.greet_server, "0.0.0.0", PORT).result()
    return server


@pytest.fixture(scope="module")
def warm(client: Workload, greeting_server: Workload) -> None:
    """Caches, allocator and tables are as full as they get, that of past events among them."""
    # Each connection is opened and closed.
    visits = RING // 2 // THREADS
    for _ in range(2):
        client.call(
            visiting.thread_visits, greeting_server.address4, PORT, THREADS, visits // 2 + 1
        )


class Watched:
    """slimd's processes on both hosts.

    Their ids are asked for once: who asks control has a connection, and so an fd, there.
    """

    def __init__(self, hosts: TwoHosts) -> None:
        self._pids = {(host, role): hosts.pid(host, role) for host in ("a", "b") for role in ROLES}

    def holdings(self) -> dict[tuple[str, str], Holdings]:
        return {key: holdings(pid) for key, pid in self._pids.items()}

    def excess(self, before: dict[tuple[str, str], Holdings]) -> dict[tuple[str, str], str]:
        """Who holds more fds or threads than before."""
        return {
            key: f"{before[key]}, now {now}"
            for key, now in self.holdings().items()
            if now.fds > before[key].fds
            or now.threads > max(before[key].threads, POOL_THREADS if key[1] == "control" else 0)
        }


@pytest.fixture(scope="module")
def watched(hosts: TwoHosts) -> Watched:
    return Watched(hosts)


def settle(hosts: TwoHosts) -> None:
    """Wait until nothing of the clients is known any more."""

    def is_quiet() -> bool:
        near, far = hosts.status("a"), hosts.status("b")
        return (near.containers, near.connections, far.connections) == (0, 0, 0)

    eventually(is_quiet, "no container and no connection is known", 15)


def wait_until_back(watched: Watched, before: dict[tuple[str, str], Holdings]) -> None:
    """Until fds and threads are no more than they were."""
    try:
        eventually(lambda: not watched.excess(before), "fds and threads are back", 10)
    except AssertionError:
        raise AssertionError(f"still held: {watched.excess(before)}") from None


def check_memory(watched: Watched, before: dict[tuple[str, str], Holdings]) -> None:
    """Nobody has grown, but for what allocators and caches of a fixed size take."""
    after = watched.holdings()
    growth = {key: after[key].anonymous_kib - before[key].anonymous_kib for key in before}
    assert all(grown < MOST_GROWTH_KIB for grown in growth.values()), growth


@pytest.mark.usefixtures("warm")
def test_ten_thousand_connections_leave_nothing_behind(
    hosts: TwoHosts, watched: Watched, client: Workload, greeting_server: Workload
) -> None:
    settle(hosts)
    before = watched.holdings()
    # In parts, each well within the time limit of a probe on a busy machine.
    for _ in range(PARTS):
        seen = client.call(
            visiting.thread_visits,
            greeting_server.address4,
            PORT,
            THREADS,
            CONNECTIONS // PARTS // THREADS,
        )
        assert (seen["done"], seen["wrong"]) == (CONNECTIONS // PARTS, [])
    settle(hosts)
    wait_until_back(watched, before)
    check_memory(watched, before)


@pytest.mark.usefixtures("warm")
def test_plain_peers_leave_nothing_behind(
    hosts: TwoHosts, watched: Watched, greeting_server: Workload
) -> None:
    stranger = hosts.plain("a")
    where = (greeting_server.address4, PORT, THREADS)
    stranger.call(visiting.thread_visits, *where, 5)
    settle(hosts)
    before = watched.holdings()
    seen = stranger.call(visiting.thread_visits, *where, 25)
    assert (seen["done"], seen["wrong"]) == (THREADS * 25, [])
    settle(hosts)
    wait_until_back(watched, before)


@pytest.mark.usefixtures("warm")
def test_two_hundred_programs_leave_nothing_behind(
    hosts: TwoHosts, watched: Watched, client: Workload, greeting_server: Workload
) -> None:
    client.call(peers.visit, greeting_server.address4, PORT)
    settle(hosts)
    before = watched.holdings()
    for _ in range(STARTS):
        client.call(peers.visit, greeting_server.address4, PORT)
    settle(hosts)
    wait_until_back(watched, before)
    check_memory(watched, before)


@pytest.mark.usefixtures("warm")
def test_listeners_that_come_and_go_leave_nothing_behind(
    hosts: TwoHosts, watched: Watched, greeting_server: Workload
) -> None:
    listeners = hosts.status("b").listeners
    before = watched.holdings()
    greeting_server.call(listening.rebind, "0.0.0.0", PORT + 1, 100)
    eventually(lambda: hosts.status("b").listeners == listeners, "the listeners are gone", 10)
    wait_until_back(watched, before)
