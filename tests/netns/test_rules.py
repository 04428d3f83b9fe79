"""Policy: what is denied gets EACCES and sends no packet, on neither path."""

from __future__ import annotations

import contextlib
import errno
from typing import TYPE_CHECKING

import pytest

from support.firewall import counting, filtering
from support.polling import eventually
from support.probes import peers, untouched
from support.two_hosts import Settings, TwoHosts, Workload

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.firewall import Counter

pytestmark = [
    pytest.mark.needs_root,
    pytest.mark.needs_netns,
    pytest.mark.needs_program("nft"),
]

WEB_PORT, DB_PORT, SECRET_PORT = 8080, 5432, 7777
RULES = """
[plugins.rules]
default = "allow"

[[plugins.rules.rules]]
name = "nobody-to-secret-port"
action = "deny"
direction = "egress"
source = { app = "client" }
ports = [7777]

[[plugins.rules.rules]]
name = "web-to-db"
action = "allow"
direction = "ingress"
source = { app = "web" }
destination = { app = "db" }

[[plugins.rules.rules]]
name = "nobody-else-to-db"
action = "deny"
direction = "ingress"
destination = { app = "db" }
"""


@pytest.fixture(scope="module")
def hosts() -> Iterator[TwoHosts]:
    """Both slimds have the rules."""
    with TwoHosts(Settings(more=RULES), Settings(more=RULES)) as two_hosts:
        yield two_hosts


@pytest.fixture(scope="module")
def web(hosts: TwoHosts) -> Workload:
    """A workload on host a that may use the database."""
    return hosts.workload("a", "web", app="web")


@pytest.fixture(scope="module")
def server(hosts: TwoHosts) -> Workload:
    workload = hosts.workload("b", "server", app="server")
    for port in (WEB_PORT, SECRET_PORT):
        workload.probe(peers.greet_server, "::", port).result()
    return workload


@pytest.fixture(scope="module")
def db(hosts: TwoHosts) -> Workload:
    """A workload on host b that only `web` may connect to."""
    workload = hosts.workload("b", "db", app="db")
    workload.probe(peers.greet_server, "::", DB_PORT).result()
    return workload


@contextlib.contextmanager
def both_paths(hosts: TwoHosts, source: Workload, port: int) -> Iterator[list[Counter]]:
    """Counts SYNs of the source: in its own namespace to that port, and from host to host."""
    underlay = hosts.host("b")
    match = "tcp flags & (syn | ack) == syn"
    with (
        counting(source.netns, f"tcp dport {port} {match}") as overlay,
        counting(underlay.netns, f"tcp dport 20000-29999 {match}", "input") as host,
    ):
        yield [overlay, host]


def test_the_counters_see_an_allowed_connection(
    hosts: TwoHosts, web: Workload, server: Workload
) -> None:
    """That zero means something in the tests below."""
    with both_paths(hosts, web, SECRET_PORT) as counters:
        assert "peer" in web.call(peers.try_visit, server.address4, SECRET_PORT)
        assert sum(counter.packets() for counter in counters) > 0
    with both_paths(hosts, web.plain(), SECRET_PORT) as counters:
        assert "peer" in web.plain().call(peers.try_visit, server.address4, SECRET_PORT)
        assert counters[0].packets() > 0


@pytest.mark.parametrize("version", [4, 6])
def test_denied_at_the_source_is_eacces_and_sends_nothing(
    hosts: TwoHosts, client: Workload, server: Workload, version: int
) -> None:
    address = server.address(version)
    with both_paths(hosts, client, SECRET_PORT) as counters:
        assert client.call(peers.try_visit, address, SECRET_PORT) == {"errno": errno.EACCES}
        assert [counter.packets() for counter in counters] == [0, 0]
    assert "peer" in client.call(peers.try_visit, address, WEB_PORT)


@pytest.mark.parametrize("version", [4, 6])
def test_denied_fast_open_sends_nothing(
    hosts: TwoHosts, client: Workload, server: Workload, version: int
) -> None:
    """The program is told to connect instead, which is judged."""
    where = (server.address(version), SECRET_PORT)
    with both_paths(hosts, client, SECRET_PORT) as counters:
        assert client.call(peers.try_fast_open, *where) == {"errno": errno.EOPNOTSUPP}
        assert client.call(peers.try_visit, *where) == {"errno": errno.EACCES}
        assert [counter.packets() for counter in counters] == [0, 0]


@pytest.mark.parametrize("version", [4, 6])
def test_denied_at_the_destination_is_eacces_and_sends_nothing(
    hosts: TwoHosts, client: Workload, web: Workload, db: Workload, version: int
) -> None:
    address = db.address(version)
    with both_paths(hosts, client, DB_PORT) as counters:
        assert client.call(peers.try_visit, address, DB_PORT) == {"errno": errno.EACCES}
        assert [counter.packets() for counter in counters] == [0, 0]
    assert "peer" in web.call(peers.try_visit, address, DB_PORT)


def test_denied_connection_is_listed_with_its_rule(
    hosts: TwoHosts, client: Workload, db: Workload
) -> None:
    running = client.probe(untouched.knock_and_stay, db.address4, DB_PORT)
    assert running.result() == "EACCES"
    peer = peers.endpoint((db.address4, DB_PORT))
    row = eventually(
        lambda: next(
            (row for row in hosts.rows("a", "out", to=peer) if row.path == "denied"), None
        ),
        "the denied connection is listed",
    )
    assert row is not None
    assert (row.verdict, row.workload) == ("deny", "client")
    assert row.rule.startswith("rules:")
    running.stop()


def test_denial_holds_between_workloads_of_one_host(hosts: TwoHosts, db: Workload) -> None:
    neighbour = hosts.workload("b", "neighbour", app="client")
    assert neighbour.call(peers.try_visit, db.address4, DB_PORT) == {"errno": errno.EACCES}
    welcome = hosts.workload("b", "web-b", app="web")
    assert "peer" in welcome.call(peers.try_visit, db.address4, DB_PORT)


def test_nonblocking_connect_is_denied_at_once(client: Workload, db: Workload) -> None:
    assert client.call(untouched.nonblocking_refusal, db.address4, DB_PORT) == "EACCES"


def test_plain_peers_of_an_isolated_workload_are_refused(
    hosts: TwoHosts, server: Workload, db: Workload
) -> None:
    stranger = hosts.plain("a", "stranger")
    assert stranger.call(peers.visit_plainly, db.address4, DB_PORT) == "reset"
    assert stranger.call(peers.visit_plainly, server.address4, WEB_PORT) == "echoed"


def test_an_allowed_workload_outside_slim_is_a_plain_peer_and_refused(
    web: Workload, db: Workload
) -> None:
    """Who enters the namespace without slim-run has no identity."""
    assert web.plain().call(peers.visit_plainly, db.address4, DB_PORT) == "reset"


def test_closed_port_of_an_isolated_workload_is_denied_not_sent_to_the_overlay(
    hosts: TwoHosts, web: Workload, db: Workload
) -> None:
    """Nobody brokers it, and the overlay is no way round a policy."""
    with both_paths(hosts, web, DB_PORT + 1) as counters:
        assert web.call(peers.try_visit, db.address4, DB_PORT + 1) == {"errno": errno.EACCES}
        assert [counter.packets() for counter in counters] == [0, 0]


def test_no_host_path_to_an_isolated_workload_is_denied_not_sent_to_the_overlay(
    hosts: TwoHosts, web: Workload
) -> None:
    isolated = hosts.workload("b", "db-2", app="db")
    isolated.probe(peers.greet_server, "0.0.0.0", DB_PORT).result()
    drop = 'iifname "eth0" tcp dport 20000-29999 drop'
    where = (isolated.address4, DB_PORT)
    with filtering(hosts.host("b").netns, drop):
        # While the first one waits the path may not be known yet; then the destination refuses.
        first = web.call(peers.try_visit, *where)
        assert first in ({"errno": errno.EACCES}, {"errno": errno.ECONNRESET})
        with both_paths(hosts, web, DB_PORT) as counters:
            assert web.call(peers.try_visit, *where) == {"errno": errno.EACCES}
            assert counters[0].packets() == 0


def test_unknown_verdict_is_refused_for_a_workload_with_egress_rules(hosts: TwoHosts) -> None:
    """Its peer's slimd cannot be asked: nobody knows whether the rules allow it."""
    isolated = """
[plugins.rules]
default = "deny"

[[plugins.rules.rules]]
name = "client-to-server"
action = "allow"
source = { app = "client" }
destination = { app = "server" }
"""
    reject = "tcp dport 7946 reject with tcp reset"
    settings = Settings(more=isolated)
    with TwoHosts(settings, settings) as others, contextlib.ExitStack() as closed:
        client = others.workload("a", "client", app="client")
        server = others.workload("b", "server", app="server")
        server.probe(peers.greet_server, "0.0.0.0", WEB_PORT).result()
        for host in ("a", "b"):
            closed.enter_context(filtering(others.host(host).netns, reject))
        with both_paths(others, client, WEB_PORT) as counters:
            seen = client.call(peers.try_visit, server.address4, WEB_PORT)
            assert seen == {"errno": errno.EACCES}
            assert [counter.packets() for counter in counters] == [0, 0]
        closed.close()
        eventually(
            lambda: "peer" in client.call(peers.try_visit, server.address4, WEB_PORT),
            "the connection is allowed when the peer can be asked",
            15,
        )
