"""Sockets that Slim leaves alone: what they show is what they show natively."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support.compatibility import Cases
from support.probes import peers, untouched

if TYPE_CHECKING:
    from support.pairs import Both, Pair
    from support.residents import Resident
    from support.two_hosts import TwoHosts

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_netns]
COMPATIBILITY = Cases(heading="Left alone")

LOOPBACK = {4: "127.0.0.1", 6: "::1"}
IPV4 = pytest.mark.parametrize("version", [4])


def test_a_loopback_listener_stays_in_its_container(
    hosts: TwoHosts, both: Both, version: int, port: int
) -> None:
    """Neither the host nor another container can reach it."""

    def play(pair: Pair) -> object:
        pair.server.probe(peers.greet_server, LOOPBACK[version], port).result()
        seen = pair.server.call(peers.visit, LOOPBACK[version], port)
        assert seen["peer"] == seen["accepted"] == seen["client_name"]
        assert seen["path"] == "own"
        return [
            seen["client_peer"],
            pair.client.call(untouched.refusal, pair.address, port),
            pair.server.call(untouched.refusal, pair.address, port),
        ]

    assert both.same(play)[1:] == ["ECONNREFUSED", "ECONNREFUSED"]
    assert f":{port}" not in " ".join(row.overlay_local for row in hosts.rows("b", "listen"))
    for host in ("a", "b"):
        listeners = hosts.on_host(host, "ss", "-Htln")
        assert f":{port}" not in listeners


def test_udp_is_left_alone(both: Both, port: int) -> None:
    def play(pair: Pair) -> object:
        pair.serve(untouched.udp_server, port).result()
        seen = pair.call_at(port, untouched.udp_visit)
        assert seen["peer"] == seen.pop("client_name")
        seen["peer"] = seen["peer"].rpartition(":")[0].strip("[]")
        return seen

    assert both.same(play) == {"client_netns_is_own": True, "peer": "client"}


def test_icmp_is_left_alone(both: Both) -> None:
    """By a raw socket and by a datagram one, as ping(8) has them."""
    seen = both.same(lambda pair: pair.client.call(untouched.echo_request, pair.address))
    assert seen["raw"]["from"] == "server"


@IPV4
def test_unix_sockets_are_left_alone(both: Both) -> None:
    assert both.same(lambda pair: pair.client.call(untouched.unix_pair)) == "hello"


@IPV4
def test_sockets_of_other_families_are_left_alone(both: Both) -> None:
    assert both.same(lambda pair: pair.client.call(untouched.vsock_calls))["accept"] == "EAGAIN"


@IPV4
def test_a_destination_outside_the_overlay_is_left_alone(hosts: TwoHosts, both: Both) -> None:
    """Natively there is no route out of the container."""
    host = str(hosts.host("b").address4)
    assert both.same(lambda pair: pair.client.call(untouched.refusal, host, 22)) == "ENETUNREACH"


def test_an_outer_address_of_the_containers_is_left_alone(
    hosts: TwoHosts, client: Resident, server: Resident, port: int
) -> None:
    """TCP between two containers over addresses that are none of the overlay's."""
    for resident, address in ((client, "172.30.1.1"), (server, "172.30.1.2")):
        resident.workload.plain().run("ip", "address", "add", f"{address}/24", "dev", "eth0")
    server.probe(peers.greet_server, "172.30.1.2", port).result()
    seen = client.probe(peers.stay, "172.30.1.2", port).result()
    assert seen["peer"] == seen["client_name"]
    assert seen["peer"].startswith("172.30.1.1:")
    assert seen["path"] == "own"
    assert all(row.overlay_local != seen["client_name"] for row in hosts.rows("a"))
