"""An overlay and containers without any IPv4: brokered, plain peers, fallback."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from lab.hosts import OVERLAY6, ip

from support.probes import peers
from support.two_hosts import Settings, TwoHosts, Workload

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_netns]

PORT = 8000
IPV6_ONLY = Settings(overlay=(str(OVERLAY6),))


@pytest.fixture(scope="module")
def hosts() -> Iterator[TwoHosts]:
    with TwoHosts(a=IPV6_ONLY, b=IPV6_ONLY) as two_hosts:
        yield two_hosts


def without_ipv4(workload: Workload) -> Workload:
    ip(workload.netns, "-4", "address", "flush", "dev", "eth0")
    return workload


@pytest.fixture(scope="module")
def client(hosts: TwoHosts) -> Workload:
    return without_ipv4(hosts.workload("a", "client"))


@pytest.fixture(scope="module")
def server(hosts: TwoHosts) -> Workload:
    workload = without_ipv4(hosts.workload("b", "server"))
    workload.probe(peers.greet_server, "::", PORT).result()
    return workload


def check_names(greeting: dict[str, Any], server: Workload) -> None:
    """Each end sees the other's overlay address."""
    assert greeting["client_peer"] == greeting["name"] == f"[{server.address6}]:{PORT}"
    assert greeting["peer"] == greeting["client_name"]


def path_of(hosts: TwoHosts, host: str, at: Workload, server: Workload) -> str:
    """How slimd says a connection goes that is open now."""
    running = at.probe(peers.stay, server.address6, PORT, 1)
    running.result()
    (row,) = (
        row
        for row in hosts.rows(host, "out", to=f"[{server.address6}]:{PORT}")
        if row.workload == at.name and row.state == "estab"
    )
    running.stop()
    return row.path


def test_connection_is_fast_and_shows_overlay_addresses(
    hosts: TwoHosts, client: Workload, server: Workload
) -> None:
    check_names(client.call(peers.visit, server.address6, PORT), server)
    assert path_of(hosts, "a", client, server) == "fast"


def test_two_containers_of_one_host(hosts: TwoHosts, server: Workload) -> None:
    beside = without_ipv4(hosts.workload("b", "beside"))
    check_names(beside.call(peers.visit, server.address6, PORT), server)
    assert path_of(hosts, "b", beside, server) == "fast"


def test_plain_peers_in_each_direction(hosts: TwoHosts, client: Workload, server: Workload) -> None:
    stranger = without_ipv4(hosts.plain("a"))
    check_names(stranger.call(peers.visit, server.address6, PORT), server)
    stranger.probe(peers.greet_server, "::", PORT).result()
    check_names(client.call(peers.visit, stranger.address6, PORT), stranger)
    assert path_of(hosts, "a", client, stranger) == "fallback"
