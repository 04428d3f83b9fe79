"""The option of the SYN and the labels, between two hosts, on the real kernel."""

from __future__ import annotations

from ipaddress import ip_address
from typing import TYPE_CHECKING

import pytest

from slim.broker.endpoints import Endpoint
from slim.broker.guard.layouts import InboundFlow, Route
from support import guard_calls as calls
from support.guard_host import FLOW, KEY, PEER, WORKLOAD, Host, two_hosts

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_netns]

SERVICE = {4: "10.77.2.2", 6: "fd77::2:2"}
CLIENT = {4: "10.77.1.1", 6: "fd77::1:1"}
Hosts = tuple[Host, Host]


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    with two_hosts() as pair:
        pair[0].guard("set_sealing_key", PEER, 1, KEY, 300)
        pair[1].guard("add_opening_key", PEER, 1, KEY, 300)
        yield pair


def offer(hosts: Hosts, family: int, port: int, *, flow: int = FLOW, admit: bool = True) -> None:
    """A listener at the server, and a route to it at the client."""
    client, server = hosts
    overlay = Endpoint(ip_address(SERVICE[family]), 80 + port % 10)
    host = Endpoint(ip_address(server.addresses[family]), port)
    server.call(calls.listen, f"L{port}", family, host, overlay)
    server.guard(
        "add_inbound",
        InboundFlow(
            flow=flow,
            peer=PEER,
            workload=WORKLOAD,
            source=ip_address(CLIENT[family]),
            listener=overlay,
            host_port=port,
        ),
    )
    client.guard(
        "add_route",
        Route(
            workload=WORKLOAD,
            destination=overlay,
            host=host,
            source=ip_address(CLIENT[family]),
            flow=flow,
            peer=PEER,
            admit=admit,
        ),
    )


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("data", [b"", b"hello"])
@pytest.mark.parametrize("cookies", ["1", "2"])
def test_both_ends_see_overlay_addresses_only(
    hosts: Hosts, family: int, data: bytes, cookies: str
) -> None:
    client, server = hosts
    port = 20000 + family * 10
    offer(hosts, family, port)
    before = server.call(calls.sysctl, "net.ipv4.tcp_syncookies", cookies)
    try:
        error, own, peer = client.call(
            calls.connect, "c", family, SERVICE[family], 80 + port % 10, data
        )
        assert error == ""
        assert peer[:2] == (SERVICE[family], 80 + port % 10)
        assert own[0] == CLIENT[family]
        accepted, accepted_peer, accepted_own = server.call(calls.accept, f"L{port}", "a")
        assert accepted[:2] == own[:2]
        assert accepted_peer[:2] == own[:2]
        assert accepted_own[:2] == (SERVICE[family], 80 + port % 10)
        if not data:
            client.call(calls.send, "c", b"hello")
        assert server.call(calls.receive, "a") == b"hello"
    finally:
        server.call(calls.sysctl, "net.ipv4.tcp_syncookies", before)
        client.call(calls.close, "c")
        server.call(calls.close, f"L{port}")


@pytest.mark.parametrize("family", [4, 6])
def test_a_stranger_cannot_connect(hosts: Hosts, family: int) -> None:
    client, server = hosts
    port = 20100 + family
    offer(hosts, family, port)
    assert client.call(calls.connect_plainly, server.addresses[family], port) == "ETIMEDOUT"
    server.call(calls.close, f"L{port}")


def test_another_key_is_refused(hosts: Hosts) -> None:
    client, server = hosts
    offer(hosts, 4, 20110)
    client.guard("set_sealing_key", PEER, 1, bytes(16), 300)
    try:
        assert client.call(calls.connect, "c", 4, SERVICE[4], 80, b"", 1.2)[0] == "ETIMEDOUT"
    finally:
        client.guard("set_sealing_key", PEER, 1, KEY, 300)
        client.call(calls.close, "c")
        server.call(calls.close, "L20110")
    assert server.call(calls.counters)["DROPPED_MAC"] > 0


def test_a_renewed_key_loses_nobody(hosts: Hosts) -> None:
    client, server = hosts
    offer(hosts, 4, 20111)
    server.guard("add_opening_key", PEER, 2, b"k" * 16, 300)
    assert client.call(calls.connect, "c1", 4, SERVICE[4], 81)[0] == ""
    client.guard("set_sealing_key", PEER, 2, b"k" * 16, 300)
    try:
        assert client.call(calls.connect, "c2", 4, SERVICE[4], 81)[0] == ""
    finally:
        client.guard("set_sealing_key", PEER, 1, KEY, 300)
        client.call(calls.close, "c1", "c2")
        server.call(calls.close, "L20111")


def test_a_dropped_flow_admits_nobody(hosts: Hosts) -> None:
    client, server = hosts
    offer(hosts, 4, 20112, flow=99)
    assert server.guard("drop_inbound", 99)
    assert client.call(calls.connect, "c", 4, SERVICE[4], 82, b"", 1.2)[0] == "ETIMEDOUT"
    client.call(calls.close, "c")
    server.call(calls.close, "L20112")


def test_a_lost_syn_is_sent_again_with_its_option(hosts: Hosts) -> None:
    client, server = hosts
    offer(hosts, 4, 20113, flow=98)
    flow = InboundFlow(
        flow=98,
        peer=PEER,
        workload=WORKLOAD,
        source=ip_address(CLIENT[4]),
        listener=Endpoint(ip_address(SERVICE[4]), 83),
        host_port=20113,
    )
    server.guard("drop_inbound", 98)
    assert client.call(calls.connect, "c", 4, SERVICE[4], 83, b"", 0.2)[0] == "ETIMEDOUT"
    server.guard("add_inbound", flow)
    # The kernel goes on by itself: its second SYN comes after a second.
    accepted, _, _ = server.call(calls.accept, "L20113", "a")
    assert accepted is not None
    assert accepted[0] == CLIENT[4]
    client.call(calls.close, "c")
    server.call(calls.close, "a", "L20113")


@pytest.mark.parametrize("cookies", ["1", "2"])
def test_one_source_port_towards_two_listeners_has_two_labels(hosts: Hosts, cookies: str) -> None:
    client, server = hosts
    offer(hosts, 4, 20114, flow=114)
    offer(hosts, 4, 20115, flow=115)
    # Not one that the other case left in TIME_WAIT.
    source = 41000 + int(cookies)
    before = client.call(calls.sysctl, "net.ipv4.ip_local_port_range", f"{source} {source}")
    server.call(calls.sysctl, "net.ipv4.tcp_syncookies", cookies)
    try:
        results = [client.call(calls.connect, f"c{port}", 4, SERVICE[4], port) for port in (84, 85)]
        assert [result[0] for result in results] == ["", ""]
        assert results[0][1] == results[1][1] == (CLIENT[4], source)
        for port in (84, 85):
            accepted, _, own = server.call(calls.accept, f"L{20030 + port}", f"a{port}")
            assert accepted == (CLIENT[4], source)
            assert own == (SERVICE[4], port)
    finally:
        client.call(calls.sysctl, "net.ipv4.ip_local_port_range", before.replace("\t", " "))
        server.call(calls.sysctl, "net.ipv4.tcp_syncookies", "1")
        client.call(calls.close, "c84", "c85")
        server.call(calls.close, "a84", "a85", "L20114", "L20115")


def test_newer_programs_take_over_without_cutting(hosts: Hosts) -> None:
    client, server = hosts
    offer(hosts, 4, 20116, flow=116)
    assert client.call(calls.connect, "c", 4, SERVICE[4], 86)[0] == ""
    server.call(calls.accept, "L20116", "a")
    for host in hosts:
        host.call(calls.reload)
    client.call(calls.send, "c", b"still here")
    assert server.call(calls.receive, "a") == b"still here"
    assert server.call(calls.names, "a")[1][0] == CLIENT[4]
    assert client.call(calls.connect, "c2", 4, SERVICE[4], 86)[0] == ""
    client.call(calls.close, "c", "c2")
