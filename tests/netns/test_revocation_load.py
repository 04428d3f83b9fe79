"""Many connections, of which a change of policy forbids a tenth.

A few hundred in the ordinary run; ten thousand, within a second, with SLIM_SOAK=1 (tox -e soak).
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

import pytest

from support.policies import ALLOW, deny, put_in_force, write_rules
from support.polling import eventually
from support.probes import holding
from support.two_hosts import Settings, TwoHosts

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.two_hosts import Running

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_netns]

SOAK = os.environ.get("SLIM_SOAK", "") not in ("", "0")
CONNECTIONS = 10_000 if SOAK else 400
EVERY_S = 2.0 if SOAK else 0.1
"""Between two lines on one connection: the clients must leave slimd something of two cores."""
LIMIT_S = 1.0
SERVERS = 4
FIRST_PORT = 9000
ENDED = {"ECONNRESET", "ECONNABORTED"}


@pytest.fixture(scope="module")
def hosts() -> Iterator[TwoHosts]:
    with TwoHosts(Settings(more=ALLOW), Settings(more=ALLOW)) as two_hosts:
        for host in ("a", "b"):
            # The rules of the configuration take the place of those above.
            file = two_hosts.machines[host].path("/etc/slim/slimd.toml")
            file.write_text(file.read_text().replace(ALLOW, ""))
            write_rules(two_hosts, host, ALLOW)
        yield two_hosts


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("host", "rules"),
    [
        ("b", deny("no-client", "client")),
        ("a", deny("no-client-out", "client", direction="egress")),
    ],
    ids=["ingress", "egress"],
)
def test_a_tenth_is_cut_and_the_others_lose_nothing(hosts: TwoHosts, host: str, rules: str) -> None:
    forbidden = CONNECTIONS // 10
    for each in ("a", "b"):
        put_in_force(hosts, each, ALLOW)
    server = hosts.workload("b", "server", app="server")
    ports = [*range(FIRST_PORT, FIRST_PORT + SERVERS)]
    servers = [server.probe(holding.echo, "0.0.0.0", port) for port in ports]
    for running in servers:
        assert running.result() == "listening"
    client, other = hosts.workload("a", "client", app="client"), hosts.workload("a", "other")
    share = (CONNECTIONS - forbidden) // SERVERS
    doomed = client.probe(holding.hold, server.address4, ports[0], forbidden, EVERY_S)
    staying = [other.probe(holding.hold, server.address4, port, share, EVERY_S) for port in ports]
    for running, count in [(doomed, forbidden), *((each, share) for each in staying)]:
        assert running.result() == count

    begun = time.monotonic()
    put_in_force(hosts, host, rules)
    done = time.monotonic() - begun
    time.sleep(1.1 * EVERY_S)

    ends = finish(doomed)
    assert (len(ends["ended"]), ends["alive"]) == (forbidden, 0)
    there = [end for each in servers for end in ends_at(each)]
    assert len(there) == forbidden
    assert {how for _, how in [*ends["ended"], *there]} <= ENDED
    for running in staying:
        kept = finish(running)
        assert (kept["ended"], kept["alive"]) == ([], share)
        assert kept["lines"] > 0
    last = [max(at for at, _ in side) - begun for side in (ends["ended"], there)]
    print(
        f"\n{CONNECTIONS} connections, {forbidden} forbidden by {host}: reload took {done:.3f} s, "
        f"the last ended after {last[0]:.3f} s at the client, {last[1]:.3f} s at the server"
    )
    if SOAK:
        assert max(last) < LIMIT_S
    for running in servers:
        running.stop()
    eventually(lambda: not hosts.rows("b", "in"), "all connections are over", 10)


def finish(holder: Running) -> dict[str, Any]:
    """What became of a process's connections; it ends."""
    holder.tell("stop")
    outcome: dict[str, Any] = holder.result()
    return outcome


def ends_at(server: Running) -> list[list[Any]]:
    """When and how a server's connections ended until now."""
    server.tell("how")
    ends: list[list[Any]] = server.result()
    return ends
