"""Limits of connections that live: quotas and times end them, a reload changes them."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING, Any

import pytest
from lab.places import enter_network

from support.policies import put_in_force, reload, write_rules
from support.polling import eventually
from support.probes import limited

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.two_hosts import TwoHosts, Workload

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_netns]

PORT = 8000
UNPACED = (1 << 64) - 1
MIB = 1 << 20
ENDED = {"ECONNABORTED", "ECONNRESET", "EPIPE"}
"""EPIPE: the program was told before, by a send that had taken some bytes."""


def rule(app: str, *limits: str) -> str:
    lines = "\n".join(limits)
    return f'[[shaping.rule]]\nname = "r"\nlabels = {{app = "{app}"}}\n{lines}\n'


def cuts(hosts: TwoHosts, host: str) -> int:
    return hosts.status(host).counters.get("connections_cut_by_limit", 0)


@pytest.fixture(autouse=True)
def as_it_was(hosts: TwoHosts) -> Iterator[None]:
    yield
    for host in ("a", "b"):
        put_in_force(hosts, host, "")


@pytest.fixture
def sink(server: Workload) -> Iterator[Any]:
    """Anew for each test: no probe runs for longer than a minute."""
    running = server.probe(limited.sink, "::", PORT)
    assert running.result() == "listening"
    yield running
    running.stop()


@pytest.fixture
def talking(client: Workload, server: Workload, sink: Any) -> Iterator[Any]:
    running = client.probe(limited.talk, server.address4, PORT)
    assert running.result() == "connected"
    sink.result()
    yield running
    running.stop()


def ask(talking: Any, what: str) -> Any:
    talking.tell(what)
    return talking.result()


def test_a_reload_changes_the_limits_of_connections_that_live(
    hosts: TwoHosts, talking: Any
) -> None:
    before = ask(talking, "options")
    assert before["rate"] == UNPACED

    put_in_force(hosts, "a", rule("client", 'send = "8mbit"', 'dscp = "cs1"', "priority = 1"))
    limits = ask(talking, "options")
    assert (limits["rate"], limits["tos"], limits["priority"]) == (1_000_000, 8 << 2, 1)

    put_in_force(hosts, "a", rule("client", 'send = "16mbit"'))
    limits = ask(talking, "options")
    assert (limits["rate"], limits["tos"], limits["priority"]) == (2_000_000, 0, 0)

    put_in_force(hosts, "a", "")
    assert ask(talking, "options") == before


def test_a_change_at_the_receiver_reaches_the_sender(hosts: TwoHosts, talking: Any) -> None:
    for written, rate in (("4mbit", 500_000), ("2mbit", 250_000), ("8mbit", 1_000_000)):
        put_in_force(hosts, "b", rule("server", f'receive = "{written}"'))
        eventually(
            lambda rate=rate: ask(talking, "options")["rate"] == rate,  # type: ignore[misc]
            f"the sender paces at {rate}",
        )
    put_in_force(hosts, "b", "")
    eventually(lambda: ask(talking, "options")["rate"] == UNPACED, "the sender does not pace")


def test_what_an_older_filter_lets_a_program_undo_is_put_back(
    hosts: TwoHosts, talking: Any
) -> None:
    """The workload started when nothing was limited: its setsockopt is not trapped."""
    put_in_force(hosts, "a", rule("client", 'send = "8mbit"'))
    assert ask(talking, "undo")["options"]["rate"] >= 1 << 32
    eventually(lambda: ask(talking, "options")["rate"] == 1_000_000, "the limit is put back")
    assert hosts.status("a").counters["limits_restored"] >= 1


def test_a_connection_ends_when_its_quota_is_spent(
    hosts: TwoHosts, client: Workload, server: Workload, sink: Any
) -> None:
    put_in_force(hosts, "a", rule("client", 'quota = "4MiB"', 'send = "8mbit"'))
    talking = client.probe(limited.talk, server.address4, PORT)
    assert talking.result() == "connected"
    end = ask(talking, "end sending")
    assert end["end"] in ENDED
    # 1 MB is sent per second; tests/netns/test_shaping_rates.py measures how late the end comes.
    assert 4 * MIB <= end["bytes"] < 8 * MIB
    eventually(lambda: cuts(hosts, "a") >= 1, "the cut is counted")
    sink.result()
    talking.stop()


def test_a_quota_that_comes_later_counts_what_was_sent_before(
    hosts: TwoHosts, talking: Any
) -> None:
    ask(talking, "send 0.5")
    put_in_force(hosts, "a", rule("client", 'quota = "1kB"'))
    assert ask(talking, "end silent")["end"] in ENDED


@pytest.mark.parametrize("limit", ["lifetime", "idle"])
def test_a_connection_ends_when_its_time_is_over(
    hosts: TwoHosts, client: Workload, server: Workload, sink: Any, limit: str
) -> None:
    put_in_force(hosts, "b", rule("server", f'{limit} = "1s"'))
    talking = client.probe(limited.talk, server.address4, PORT)
    assert talking.result() == "connected"
    assert ask(talking, "end silent")["end"] in {*ENDED, "closed"}
    eventually(lambda: cuts(hosts, "b") >= 1, "it was cut at b")
    sink.result()
    talking.stop()


def container_limit(rate: str) -> str:
    return f'[[shaping.container]]\nname = "c"\nlabels = {{app = "client"}}\nsend = "{rate}"\n'


def test_all_connections_of_a_workload_share_its_limit(
    hosts: TwoHosts, client: Workload, server: Workload, sink: Any, talking: Any
) -> None:
    """One that was there before, and one that came after; a neighbour's is not held up."""
    put_in_force(hosts, "a", container_limit("16mbit"))
    both = [talking, client.probe(limited.talk, server.address4, PORT)]
    assert both[1].result() == "connected"
    neighbour = hosts.workload("a", "neighbour", app="neighbour")
    other = neighbour.probe(limited.talk, server.address4, PORT)
    assert other.result() == "connected"
    for each in [*both, other]:
        each.tell("send 2")
    sent = [each.result() for each in both]
    took = max(each["seconds"] for each in sent)
    # A burst of 128 KiB, and what acknowledgements were on their way.
    assert 0 < sum(each["bytes"] for each in sent) <= 2_000_000 * took * 1.2 + 262_144
    assert other.result()["bytes"] > 2_000_000 * took * 2
    put_in_force(hosts, "a", "")
    both[1].tell("send 1")
    assert both[1].result()["bytes"] > 4_000_000
    for each in (both[1], other):
        each.stop()
        sink.result()


def test_a_queueing_discipline_of_the_administrators_is_not_replaced(hosts: TwoHosts) -> None:
    netns = hosts.host("a").netns
    command = [*enter_network(netns), "tc", "qdisc"]
    tbf = ["tbf", "rate", "10gbit", "burst", "1mb", "latency", "50ms"]
    subprocess.run([*command, "add", "dev", "lo", "root", "handle", "7:", *tbf], check=True)
    try:
        write_rules(hosts, "a", container_limit("16mbit"))
        (mistake,) = reload(hosts, "a").mistakes
        assert "lo, which is tbf" in mistake.message
        assert "tc qdisc del dev lo root" in mistake.hint
    finally:
        subprocess.run([*command, "del", "dev", "lo", "root"], check=True)


def test_a_connection_that_is_used_is_not_idle(
    hosts: TwoHosts, client: Workload, server: Workload, sink: Any
) -> None:
    put_in_force(hosts, "a", rule("client", 'idle = "1s"', 'send = "8mbit"'))
    talking = client.probe(limited.talk, server.address4, PORT)
    assert talking.result() == "connected"
    assert ask(talking, "send 3")["seconds"] >= 3
    talking.stop()
    sink.result()
