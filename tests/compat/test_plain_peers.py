"""Endpoints that Slim does not broker, in both directions, and a container's own loopback."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support.compatibility import Cases
from support.pairs import GREETING_PORT
from support.probes import peers, untouched

if TYPE_CHECKING:
    from support.residents import Resident
    from support.two_hosts import TwoHosts

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_netns]
COMPATIBILITY = Cases(heading="Plain peers")

PORT = GREETING_PORT
LOOPBACK = {4: "127.0.0.1", 6: "::1"}
VERSIONS = pytest.mark.parametrize("version", [4, 6])


@VERSIONS
def test_a_plain_client_reaches_a_brokered_listener_with_its_true_address(
    stranger: Resident, server: Resident, version: int
) -> None:
    seen = stranger.call(peers.visit, server.address(version), PORT + version)
    assert seen["peer"] == seen["accepted"] == seen["client_name"]
    assert seen["name"] == seen["client_peer"]


def test_many_plain_clients_at_once_are_all_served(stranger: Resident, server: Resident) -> None:
    seen = stranger.call(untouched.visit_at_once, server.address4, PORT + 4, 100)
    assert len(seen) == 100
    assert all(each["peer"] == each["client_name"] for each in seen)


def test_plain_and_brokered_clients_are_served_side_by_side(
    stranger: Resident, client: Resident, server: Resident
) -> None:
    plain = stranger.probe(untouched.visit_at_once, server.address4, PORT + 4, 60)
    brokered = client.call(untouched.visit_at_once, server.address4, PORT + 4, 60)
    seen = [*plain.result(), *brokered]
    assert len(seen) == 120
    assert all(each["peer"] == each["accepted"] == each["client_name"] for each in seen)


@VERSIONS
def test_a_brokered_client_reaches_a_plain_server(
    hosts: TwoHosts, client: Resident, plain_server: Resident, version: int
) -> None:
    connection = client.probe(peers.stay, plain_server.address(version), PORT + version)
    seen = connection.result()
    assert seen["peer"] == seen["client_name"]
    row = hosts.row("a", seen["client_name"])
    assert (row.path, row.reason) == ("fallback", "not-brokered")


@VERSIONS
def test_a_containers_loopback_reaches_its_own_wildcard_listener(
    server: Resident, version: int
) -> None:
    for visitor in (server, server.workload.plain()):
        seen = visitor.call(peers.visit, LOOPBACK[version], PORT + version)
        assert seen["peer"] == seen["accepted"] == seen["client_name"]
        assert seen["name"] == peers.endpoint((LOOPBACK[version], PORT + version))


@VERSIONS
def test_a_container_reaches_itself_at_its_overlay_address(server: Resident, version: int) -> None:
    address = server.address(version)
    seen = server.call(peers.visit, address, PORT + version)
    assert seen["peer"] == seen["accepted"] == seen["client_name"]
    assert seen["client_peer"] == peers.endpoint((address, PORT + version))


def test_an_ipv4_client_reaches_a_dual_stack_listener(
    client: Resident, stranger: Resident, server: Resident
) -> None:
    for visitor in (client, stranger):
        seen = visitor.call(peers.visit, server.address4, PORT + 6)
        assert seen["peer"] == seen["accepted"] == seen["client_name"]


def test_a_v6only_listener_is_no_listener_for_ipv4(
    client: Resident, stranger: Resident, server: Resident, port: int
) -> None:
    server.probe(untouched.v6only_server, port).result()
    for visitor in (client, stranger):
        assert visitor.call(untouched.refusal, server.address4, port) == "ECONNREFUSED"
        assert "peer" in visitor.call(peers.visit, server.address6, port)
