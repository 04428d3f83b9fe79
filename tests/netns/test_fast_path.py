"""A brokered connection crosses the host's network and nothing else."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

from support.measuring import vxlan_packets
from support.polling import eventually
from support.probes import peers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.two_hosts import TwoHosts, Workload

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_netns]

BULK_BYTES = 32 << 20
PORTS = {4: 8000, 6: 8006}
NOISE_PACKETS = 50
"""ARP, neighbour discovery and rendezvous go over the overlay."""


@pytest.fixture(scope="module")
def greeting_server(server: Workload) -> Workload:
    for version, anywhere in ((4, "0.0.0.0"), (6, "::")):
        server.probe(peers.greet_server, anywhere, PORTS[version]).result()
    return server


@pytest.fixture
def paused(hosts: TwoHosts) -> Iterator[list[int]]:
    """Process ids that are continued at the end; the test stops them."""
    pids = [hosts.pid(host, role) for host in ("a", "b") for role in ("control", "traps")]
    yield pids
    for pid in pids:
        os.kill(pid, signal.SIGCONT)


@pytest.mark.parametrize("version", [4, 6])
def test_bulk_data_does_not_touch_the_overlay_link(
    hosts: TwoHosts, client: Workload, greeting_server: Workload, version: int
) -> None:
    before = vxlan_packets(hosts)
    with_slim = client.probe(
        peers.stay, greeting_server.address(version), PORTS[version], BULK_BYTES
    )
    with_slim.result()
    with_slim.tell("echo")
    assert with_slim.result() == BULK_BYTES
    assert vxlan_packets(hosts) - before < NOISE_PACKETS
    with_slim.stop()


def test_the_same_bulk_data_without_slim_does_use_the_overlay_link(
    hosts: TwoHosts, greeting_server: Workload
) -> None:
    """That the counter of the test above counts."""
    before = vxlan_packets(hosts)
    plain = hosts.plain("a").probe(peers.stay, greeting_server.address4, PORTS[4], BULK_BYTES)
    plain.result()
    plain.tell("echo")
    assert plain.result() == BULK_BYTES
    assert vxlan_packets(hosts) - before > 10 * NOISE_PACKETS
    plain.stop()


@pytest.mark.parametrize("version", [4, 6])
def test_slimd_lists_the_connection_at_both_ends_with_its_addresses(
    hosts: TwoHosts, client: Workload, greeting_server: Workload, version: int
) -> None:
    connection = client.probe(peers.stay, greeting_server.address(version), PORTS[version])
    seen = connection.result()
    out = hosts.row("a", seen["client_name"])
    assert (out.direction, out.path, out.reason) == ("out", "fast", "")
    assert out.overlay_peer == seen["client_peer"]
    assert out.workload == "client"
    assert out.state == "estab"
    assert out.process.startswith(f"{connection.pid}/")
    into = next(row for row in hosts.rows("b", "in") if row.overlay_peer == seen["client_name"])
    assert (into.path, into.workload) == ("fast", "server")
    assert into.overlay_local == seen["client_peer"]
    assert (into.host_local, into.host_peer) == (out.host_peer, out.host_local)
    connection.stop()


def test_a_listener_is_listed_with_its_host_endpoint(
    hosts: TwoHosts, greeting_server: Workload
) -> None:
    row = next(
        row for row in hosts.rows("b", "listen") if row.overlay_local == f"0.0.0.0:{PORTS[4]}"
    )
    address, _, port = row.host_local.rpartition(":")
    assert address == str(hosts.host("b").address4)
    assert 20000 <= int(port) <= 29999


@pytest.mark.needs_program("ss")
def test_the_socket_is_in_the_host_s_network_namespace(
    hosts: TwoHosts, client: Workload, greeting_server: Workload
) -> None:
    connection = client.probe(peers.stay, greeting_server.address4, PORTS[4])
    row = hosts.row("a", connection.result()["client_name"])
    ends = [line.split()[3:5] for line in hosts.on_host("a", "ss", "-Htn").splitlines()]
    assert [row.host_local, row.host_peer] in ends
    connection.stop()


def test_an_open_connection_needs_no_slimd_process(
    hosts: TwoHosts, client: Workload, greeting_server: Workload, paused: list[int]
) -> None:
    connection = client.probe(peers.stay, greeting_server.address4, PORTS[4], BULK_BYTES)
    seen = connection.result()
    assert hosts.row("a", seen["client_name"]).path == "fast"
    for pid in paused:
        os.kill(pid, signal.SIGSTOP)
    eventually(lambda: all(_state(pid) == "T" for pid in paused), "all of slimd is stopped")
    connection.tell("echo")
    assert connection.result() == BULK_BYTES
    for pid in paused:
        assert _state(pid) == "T"
        os.kill(pid, signal.SIGCONT)
    # The names are traps' to tell.
    assert connection.result() == {name: seen[name] for name in ("client_name", "client_peer")}
    connection.stop()


def test_a_closed_connection_leaves_the_table(
    hosts: TwoHosts, client: Workload, greeting_server: Workload
) -> None:
    name = client.call(peers.visit, greeting_server.address4, PORTS[4])["client_name"]
    eventually(
        lambda: all(row.overlay_local != name for row in hosts.rows("a")),
        "the connection is no longer listed",
        10,
    )


def _state(pid: int) -> str:
    with open(f"/proc/{pid}/stat") as stat:
        return stat.read().rpartition(")")[2].split()[0]
