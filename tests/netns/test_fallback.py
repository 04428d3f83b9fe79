"""What Slim cannot make fast goes over the overlay: same bytes, true addresses, reason shown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from support.compatibility import Cases
from support.firewall import filtering
from support.measuring import vxlan_packets
from support.polling import eventually
from support.probes import fallbacks, peers
from support.two_hosts import Settings, TwoHosts, Workload

if TYPE_CHECKING:
    from collections.abc import Iterator

    from slim.broker.admin.messages import Connection
    from support.two_hosts import Running

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_netns]
COMPATIBILITY = Cases(
    heading="The way back", expected="falls back, as the name says; same bytes, true addresses"
)

PORT = 8000
HURRY = """
[limits]
resolve_budget_ms = 1000
connect_budget_ms = 400
"""
HOST_PORTS = 'iifname "eth0" tcp dport 20000-29999'
ANYWHERE = {4: "0.0.0.0", 6: "::"}
VERSIONS = pytest.mark.parametrize("version", [4, 6])


@pytest.fixture(scope="module")
def hosts() -> Iterator[TwoHosts]:
    """slimds that do not wait long for a handshake."""
    with TwoHosts(Settings(more=HURRY), Settings(more=HURRY)) as two_hosts:
        yield two_hosts


@pytest.fixture
def fresh_server(hosts: TwoHosts) -> Workload:
    """A workload that nobody has connected to, so that nothing is known about its host path."""
    return serve(hosts)


def serve(hosts: TwoHosts, name: str = "server") -> Workload:
    workload = hosts.workload("b", name)
    for version, anywhere in ANYWHERE.items():
        workload.probe(peers.greet_server, anywhere, PORT + version).result()
    return workload


def check(hosts: TwoHosts, running: Running, path: str, *reasons: str) -> dict[str, Any]:
    """Both ends see true addresses, and slimd lists that path and one of the reasons."""
    seen: dict[str, Any] = running.result()
    assert seen["peer"] == seen["accepted"] == seen["client_name"]
    row = row_to(hosts, seen["client_peer"])
    assert row.path == path
    assert row.reason in (reasons or ("",))
    running.stop()
    return seen


def row_to(hosts: TwoHosts, peer: str) -> Connection:
    """The open connection to that overlay endpoint; a closed one may be listed for a while."""

    def find() -> Connection | None:
        rows = [row for row in hosts.rows("a", "out", to=peer) if row.state == "estab"]
        return rows[0] if rows else None

    row = eventually(find, f"an open connection to {peer} is listed")
    assert row is not None
    return row


# --- the host path ----------------------------------------------------------------------------


@VERSIONS
@pytest.mark.needs_program("nft")
def test_dropped_host_ports_cost_the_first_connection_nothing_but_the_probe(
    hosts: TwoHosts, client: Workload, fresh_server: Workload, version: int
) -> None:
    with filtering(hosts.host("b").netns, f"{HOST_PORTS} drop"):
        where = (fresh_server.address(version), PORT + version)
        before = vxlan_packets(hosts)
        running = client.probe(fallbacks.timed_visit, *where)
        # The probe may last as long as a connect may wait for it.
        seen = check(hosts, running, "fallback", "host-path-failed", "resolve-budget")
        assert seen["took_s"] < 2
        assert vxlan_packets(hosts) - before > 10
        # Known by now.
        running = client.probe(fallbacks.timed_visit, *where)
        seen = check(hosts, running, "fallback", "host-path-failed")
        assert seen["took_s"] < 0.5


@VERSIONS
@pytest.mark.needs_program("nft")
def test_host_ports_dropped_behind_a_good_probe_are_found_out_by_the_connect(
    hosts: TwoHosts, client: Workload, fresh_server: Workload, version: int
) -> None:
    where = (fresh_server.address(version), PORT + version)
    check(hosts, client.probe(fallbacks.timed_visit, *where), "fast")
    with filtering(hosts.host("b").netns, f"{HOST_PORTS} drop"):
        running = client.probe(fallbacks.timed_visit, *where)
        seen = check(hosts, running, "fallback", "host-path-failed")
        assert 0.3 < seen["took_s"] < 3


@pytest.mark.needs_program("nft")
def test_rejected_host_ports_are_found_out_at_once(
    hosts: TwoHosts, client: Workload, fresh_server: Workload
) -> None:
    where = (fresh_server.address4, PORT + 4)
    check(hosts, client.probe(fallbacks.timed_visit, *where), "fast")
    with filtering(hosts.host("b").netns, f"{HOST_PORTS} reject with tcp reset"):
        running = client.probe(fallbacks.timed_visit, *where)
        seen = check(hosts, running, "fallback", "host-path-failed")
        assert seen["took_s"] < 0.4


@pytest.mark.needs_program("nft")
def test_the_fast_path_comes_back_with_the_host_ports(
    hosts: TwoHosts, client: Workload, fresh_server: Workload
) -> None:
    where = (fresh_server.address4, PORT + 4)
    with filtering(hosts.host("b").netns, f"{HOST_PORTS} drop"):
        running = client.probe(fallbacks.timed_visit, *where)
        check(hosts, running, "fallback", "host-path-failed", "resolve-budget")

    def is_fast() -> bool:
        running = client.probe(peers.stay, *where)
        row = row_to(hosts, running.result()["client_peer"])
        running.stop()
        eventually(
            lambda: (
                not any(
                    each.state == "estab" for each in hosts.rows("a", "out", to=row.overlay_peer)
                )
            ),
            "the connection is over",
        )
        return row.path == "fast"

    eventually(is_fast, "connections are fast again", 15)


@pytest.fixture
def without_fast_open(hosts: TwoHosts) -> Iterator[None]:
    """net.ipv4.tcp_fastopen of host a lacks the client's bit."""
    setting = "net.ipv4.tcp_fastopen"
    before = hosts.on_host("a", "sysctl", "-n", setting).strip()
    hosts.on_host("a", "sysctl", "-qw", f"{setting}=0")
    yield
    hosts.on_host("a", "sysctl", "-qw", f"{setting}={before}")


@VERSIONS
@pytest.mark.usefixtures("without_fast_open")
def test_blocking_connect_needs_no_tcp_fast_open(
    hosts: TwoHosts, client: Workload, fresh_server: Workload, version: int
) -> None:
    where = (fresh_server.address(version), PORT + version)
    check(hosts, client.probe(fallbacks.timed_visit, *where), "fast")


@VERSIONS
@pytest.mark.usefixtures("without_fast_open")
def test_nonblocking_connect_without_tcp_fast_open_uses_the_overlay(
    hosts: TwoHosts, client: Workload, fresh_server: Workload, version: int
) -> None:
    where = (fresh_server.address(version), PORT + version)
    check(hosts, client.probe(peers.stay, *where), "fallback", "tfo-off")


# --- the socket -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "oddity",
    [
        "SO_BINDTODEVICE",
        "SO_MARK",
        "IP_OPTIONS",
        "SO_ATTACH_FILTER",
        "copy-in-another-process",
    ],
)
def test_socket_that_cannot_be_replaced_uses_the_overlay(
    hosts: TwoHosts, client: Workload, server: Workload, oddity: str
) -> None:
    port = 8100 + len(oddity)
    server.probe(peers.greet_server, "0.0.0.0", port).result()
    running = client.probe(fallbacks.stay_with, server.address4, port, oddity)
    check(hosts, running, "fallback", oddity)


def test_ipv6_only_socket_uses_the_overlay_and_takes_nobody_else_with_it(
    hosts: TwoHosts, client: Workload, fresh_server: Workload
) -> None:
    where = (fresh_server.address6, PORT + 6)
    running = client.probe(fallbacks.stay_with, *where, "IPV6_V6ONLY")
    check(hosts, running, "fallback", "ipv6-only-socket-ipv4-underlay")
    check(hosts, client.probe(fallbacks.timed_visit, *where), "fast")


def test_listener_that_cannot_be_replaced_stays_on_the_overlay(
    hosts: TwoHosts, client: Workload, server: Workload
) -> None:
    server.probe(fallbacks.filtered_server, "0.0.0.0", 8200).result()
    running = client.probe(fallbacks.timed_visit, server.address4, 8200)
    check(hosts, running, "fallback", "no-listener")


def test_listener_that_comes_later_is_fast_at_once(
    hosts: TwoHosts, client: Workload, server: Workload
) -> None:
    """That nobody listened is remembered, and must be pushed away."""
    assert client.call(peers.try_visit, server.address4, 8201) == {"errno": 111}
    server.probe(peers.greet_server, "0.0.0.0", 8201).result()

    def path() -> str:
        running = client.probe(peers.stay, server.address4, 8201)
        running.result()
        found = hosts.rows("a", "out", to=f"{server.address4}:8201")
        running.stop()
        return "fast" if any(row.path == "fast" for row in found) else ""

    eventually(path, "a connection is fast", 3)


# --- the peer ---------------------------------------------------------------------------------


@pytest.mark.needs_program("nft")
def test_peer_whose_control_port_is_closed(hosts: TwoHosts) -> None:
    """Its workloads are reached over the overlay, as by any plain peer."""
    rule = "tcp dport 7946 reject with tcp reset"
    with TwoHosts(Settings(more=HURRY), Settings(more=HURRY)) as others:
        with filtering(others.host("b").netns, rule), filtering(others.host("a").netns, rule):
            client, server = others.workload("a", "client"), serve(others)
            running = client.probe(fallbacks.timed_visit, server.address4, PORT + 4)
            check(others, running, "fallback", "peer-unreachable")


def test_peer_without_slimd() -> None:
    with TwoHosts(b=Settings(is_absent=True)) as hosts:
        client, server = hosts.workload("a", "client"), hosts.plain("b")
        server.probe(peers.greet_server, "0.0.0.0", PORT + 4).result()
        running = client.probe(fallbacks.timed_visit, server.address4, PORT + 4)
        check(hosts, running, "fallback", "not-brokered")


def test_peer_with_a_certificate_for_another_network_is_not_believed() -> None:
    with TwoHosts(b=Settings(networks=("10.99.0.0/16",))) as hosts:
        client, server = hosts.workload("a", "client"), serve(hosts)
        running = client.probe(fallbacks.timed_visit, server.address4, PORT + 4)
        seen = running.result()
        assert seen["peer"] == seen["accepted"] == seen["client_name"]
        row = row_to(hosts, seen["client_peer"])
        assert row.path == "fallback"
        assert row.reason in ("no-discovery", "resolve-budget")
        assert row.host_peer == ""


def test_no_host_port_left() -> None:
    with TwoHosts(b=Settings(ports="20000-20001")) as hosts:
        client, server = hosts.workload("a", "client"), hosts.workload("b", "server")
        for port in (8000, 8001, 8002):
            server.probe(peers.greet_server, "0.0.0.0", port).result()
        paths = []
        for port in (8000, 8001, 8002):
            running = client.probe(fallbacks.timed_visit, server.address4, port)
            running.result()
            paths.append(row_to(hosts, f"{server.address4}:{port}").path)
            running.stop()
        assert paths == ["fast", "fast", "fallback"]
        assert "host-ports-exhausted" in hosts.log("b")
