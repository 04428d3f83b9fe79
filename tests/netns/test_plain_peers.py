"""Endpoints that Slim does not broker, and sockets that it leaves alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support.compatibility import Cases
from support.probes import peers, untouched

if TYPE_CHECKING:
    from support.two_hosts import TwoHosts, Workload

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_netns]
COMPATIBILITY = Cases(heading="Plain peers, and what is left alone")

PORT = 8000
PLAIN_PORT = 8100
LOOPBACK_PORT = 8200
ANYWHERE = {4: "0.0.0.0", 6: "::"}
LOOPBACK = {4: "127.0.0.1", 6: "::1"}
VERSIONS = pytest.mark.parametrize("version", [4, 6])


@pytest.fixture(scope="module")
def stranger(hosts: TwoHosts) -> Workload:
    """A container on host a that no slimd hears of."""
    return hosts.plain("a", "stranger")


@pytest.fixture(scope="module")
def greeting_server(server: Workload) -> Workload:
    for version, anywhere in ANYWHERE.items():
        server.probe(peers.greet_server, anywhere, PORT + version).result()
    return server


@VERSIONS
def test_a_plain_client_reaches_a_brokered_listener_with_its_true_address(
    stranger: Workload, greeting_server: Workload, version: int
) -> None:
    seen = stranger.call(peers.visit, greeting_server.address(version), PORT + version)
    assert seen["peer"] == seen["accepted"] == seen["client_name"]
    assert seen["name"] == seen["client_peer"]


def test_many_plain_clients_at_once_are_all_served(
    stranger: Workload, greeting_server: Workload
) -> None:
    seen = stranger.call(untouched.visit_at_once, greeting_server.address4, PORT + 4, 100)
    assert len(seen) == 100
    assert all(each["peer"] == each["client_name"] for each in seen)


def test_plain_and_brokered_clients_are_served_side_by_side(
    stranger: Workload, client: Workload, greeting_server: Workload
) -> None:
    plain = stranger.probe(untouched.visit_at_once, greeting_server.address4, PORT + 4, 60)
    brokered = client.call(untouched.visit_at_once, greeting_server.address4, PORT + 4, 60)
    seen = [*plain.result(), *brokered]
    assert len(seen) == 120
    assert all(each["peer"] == each["accepted"] == each["client_name"] for each in seen)


@VERSIONS
def test_a_brokered_client_reaches_a_plain_server(
    hosts: TwoHosts, client: Workload, stranger_server: Workload, version: int
) -> None:
    connection = client.probe(peers.stay, stranger_server.address(version), PLAIN_PORT + version)
    seen = connection.result()
    assert seen["peer"] == seen["client_name"]
    row = hosts.row("a", seen["client_name"])
    assert (row.path, row.reason) == ("fallback", "not-brokered")
    connection.stop()


@pytest.fixture(scope="module")
def stranger_server(hosts: TwoHosts) -> Workload:
    """A container on host b that no slimd hears of, with servers."""
    workload = hosts.plain("b", "stranger-server")
    for version, anywhere in ANYWHERE.items():
        workload.probe(peers.greet_server, anywhere, PLAIN_PORT + version).result()
    return workload


@VERSIONS
def test_a_containers_loopback_reaches_its_own_wildcard_listener(
    greeting_server: Workload, version: int
) -> None:
    for visitor in (greeting_server, greeting_server.plain()):
        seen = visitor.call(peers.visit, LOOPBACK[version], PORT + version)
        assert seen["peer"] == seen["accepted"] == seen["client_name"]
        assert seen["name"] == peers.endpoint((LOOPBACK[version], PORT + version))


@VERSIONS
def test_a_container_reaches_itself_at_its_overlay_address(
    greeting_server: Workload, version: int
) -> None:
    address = greeting_server.address(version)
    seen = greeting_server.call(peers.visit, address, PORT + version)
    assert seen["peer"] == seen["accepted"] == seen["client_name"]
    assert seen["client_peer"] == peers.endpoint((address, PORT + version))


def test_an_ipv4_client_reaches_a_dual_stack_listener(
    client: Workload, stranger: Workload, greeting_server: Workload
) -> None:
    for visitor in (client, stranger):
        seen = visitor.call(peers.visit, greeting_server.address4, PORT + 6)
        assert seen["peer"] == seen["accepted"] == seen["client_name"]


def test_a_v6only_listener_is_no_listener_for_ipv4(
    client: Workload, stranger: Workload, server: Workload
) -> None:
    server.probe(untouched.v6only_server, PORT + 66).result()
    for visitor in (client, stranger):
        assert visitor.call(untouched.refusal, server.address4, PORT + 66) == "ECONNREFUSED"
        assert "peer" in visitor.call(peers.visit, server.address6, PORT + 66)


@VERSIONS
def test_a_loopback_listener_stays_in_its_container(
    hosts: TwoHosts, client: Workload, server: Workload, version: int
) -> None:
    server.probe(peers.greet_server, LOOPBACK[version], LOOPBACK_PORT + version).result()
    seen = server.call(peers.visit, LOOPBACK[version], LOOPBACK_PORT + version)
    assert seen["peer"] == seen["client_name"]
    assert all(
        not row.overlay_local.endswith(f":{LOOPBACK_PORT + version}")
        for row in hosts.rows("b", "listen")
    )
    refused = client.call(untouched.refusal, server.address(version), LOOPBACK_PORT + version)
    assert refused == "ECONNREFUSED"


@VERSIONS
def test_udp_is_left_alone(client: Workload, server: Workload, version: int) -> None:
    server.probe(untouched.udp_server, ANYWHERE[version], PORT + version).result()
    seen = client.call(untouched.udp_visit, server.address(version), PORT + version)
    assert seen["client_netns_is_own"]
    assert seen["peer"] == seen["client_name"]
    assert seen["peer"].rpartition(":")[0].strip("[]") == client.address(version)


def test_unix_sockets_are_left_alone(client: Workload) -> None:
    assert client.call(untouched.unix_pair) == "hello"


def test_sockets_of_other_families_are_left_alone(client: Workload) -> None:
    native = client.plain().call(untouched.vsock_calls)
    assert native["accept"] == "EAGAIN"
    assert client.call(untouched.vsock_calls) == native


def test_a_destination_outside_the_overlay_is_left_alone(hosts: TwoHosts, client: Workload) -> None:
    """Natively there is no route out of the container."""
    host = str(hosts.host("b").address4)
    native = client.plain().call(untouched.refusal, host, 22)
    assert native == "ENETUNREACH"
    assert client.call(untouched.refusal, host, 22) == native


def test_an_outer_address_of_the_containers_is_left_alone(
    hosts: TwoHosts, client: Workload, server: Workload
) -> None:
    """TCP between two containers over addresses that are none of the overlay's."""
    for workload, address in ((client, "172.30.1.1"), (server, "172.30.1.2")):
        workload.plain().run("ip", "address", "add", f"{address}/24", "dev", "eth0")
    server.probe(peers.greet_server, "172.30.1.2", PORT).result()
    connection = client.probe(peers.stay, "172.30.1.2", PORT)
    seen = connection.result()
    assert seen["peer"] == seen["client_name"]
    assert seen["peer"].startswith("172.30.1.1:")
    assert all(row.overlay_local != seen["client_name"] for row in hosts.rows("a"))
    connection.stop()
