"""Hosts that find each other in the kernel's tables alone, laid out as Flannel does."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support.measuring import vxlan_packets
from support.polling import eventually
from support.probes import peers
from support.two_hosts import PATIENCE, Settings, TwoHosts

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.two_hosts import Workload

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_netns]

ONLY_NEIGHBOURS = f'{PATIENCE}\n[discovery]\norder = ["neighbours"]\n'
PORT = 8000
NOISE_PACKETS = 50
BULK_BYTES = 8 << 20


@pytest.fixture(scope="module")
def hosts() -> Iterator[TwoHosts]:
    """No static peers, and no rendezvous."""
    settings = Settings(more=ONLY_NEIGHBOURS)
    with TwoHosts(settings, settings) as two_hosts:
        yield two_hosts


def path_of(hosts: TwoHosts, client: Workload, server: Workload) -> tuple[str, str]:
    """The path of a new connection, and why."""
    running = client.probe(peers.stay, server.address4, PORT)
    row = hosts.row("a", running.result()["client_name"])
    running.stop()
    return row.path, row.reason


def test_a_host_is_found_as_soon_as_the_tables_name_it(
    hosts: TwoHosts, client: Workload, server: Workload
) -> None:
    server.probe(peers.greet_server, "0.0.0.0", PORT).result()
    unknown = path_of(hosts, client, server)
    assert unknown == ("fallback", "no-discovery")

    mac, other = "02:00:00:00:00:02", hosts.host("b").address4
    for command in (
        "ip route add 10.77.2.0/24 via 10.77.2.0 dev vxlan0 onlink",
        f"ip neigh add 10.77.2.0 lladdr {mac} dev vxlan0 nud permanent",
        f"bridge fdb append {mac} dev vxlan0 dst {other}",
    ):
        hosts.on_host("a", *command.split())

    # What was not known is asked again after a few seconds.
    eventually(lambda: path_of(hosts, client, server) == ("fast", ""), "the fast path", 20)
    before = vxlan_packets(hosts)
    running = client.probe(peers.stay, server.address4, PORT, BULK_BYTES)
    running.result()
    running.tell("echo")
    assert running.result() == BULK_BYTES
    running.stop()
    assert vxlan_packets(hosts) - before < NOISE_PACKETS
