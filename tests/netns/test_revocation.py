"""What policy forbids does not stay, and does not come: connections that were allowed before."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING, Any

import pytest

from support.firewall import filtering
from support.policies import ALLOW, deny, put_in_force, write_rules
from support.polling import eventually
from support.probes import peers, revoked

if TYPE_CHECKING:
    from support.two_hosts import Running, TwoHosts, Workload

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_netns]

PORT, OTHER_PORT, END_PORT, FALLBACK_PORT = 8000, 8001, 8002, 8003
ENDED = ("ECONNRESET", "ECONNABORTED")
NO_CLIENT = deny("no-client", "client")
NO_CLIENT_OUT = deny("no-client-out", "client", direction="egress")


@pytest.fixture(scope="module")
def other(hosts: TwoHosts) -> Workload:
    """A workload on host a that every policy here allows."""
    return hosts.workload("a", "other", app="other")


@pytest.fixture(scope="module")
def greeter(server: Workload) -> Workload:
    server.probe(peers.greet_server, "0.0.0.0", PORT).result()
    return server


@pytest.fixture(scope="module")
def ends(server: Workload) -> Running:
    """Reports how every connection to END_PORT ended."""
    running = server.probe(revoked.serve_until_end, "0.0.0.0", END_PORT)
    assert running.result() == "listening"
    return running


@pytest.fixture(autouse=True)
def allowing(hosts: TwoHosts) -> None:
    """Everything is allowed when a test begins."""
    for host in ("a", "b"):
        put_in_force(hosts, host, ALLOW)


def connect_to_end(
    hosts: TwoHosts, client: Workload, server: Workload, path: str, port: int = END_PORT
) -> Running:
    running = client.probe(revoked.wait_for_end, server.address4, port)
    greeting = running.result()
    assert hosts.row("a", greeting["client_name"]).path == path
    return running


@pytest.mark.parametrize(
    ("host", "rules"), [("b", NO_CLIENT), ("a", NO_CLIENT_OUT)], ids=["ingress", "egress"]
)
def test_a_forbidden_connection_is_cut_at_both_ends_and_no_other_loses_a_byte(
    hosts: TwoHosts,
    client: Workload,
    other: Workload,
    greeter: Workload,
    ends: Running,
    host: str,
    rules: str,
) -> None:
    counting = other.probe(revoked.count_up, greeter.address4, PORT)
    assert counting.result() == "counting"
    running = connect_to_end(hosts, client, greeter, "fast")

    put_in_force(hosts, host, rules)

    assert running.result() in ENDED
    assert ends.result() in ENDED
    assert "errno" in client.call(peers.try_visit, greeter.address4, PORT)
    assert "peer" in other.call(peers.try_visit, greeter.address4, PORT)
    counting.tell("stop")
    assert counting.result() > 0


def test_a_connection_on_the_overlay_is_cut_too(
    hosts: TwoHosts, other: Workload, server: Workload
) -> None:
    """Its end at the destination is a plain peer's, which isolation alone forbids."""
    with filtering(hosts.host("b").netns, 'iifname "eth0" tcp dport 20000-29999 drop'):
        # Of a new listener it is not known yet that there is a path.
        ends = server.probe(revoked.serve_until_end, "0.0.0.0", FALLBACK_PORT)
        assert ends.result() == "listening"
        running = connect_to_end(hosts, other, server, "fallback", FALLBACK_PORT)
        put_in_force(hosts, "b", NO_CLIENT)
        assert running.result() in ENDED
        assert ends.result() in ENDED


def test_the_overlay_to_a_listener_that_nobody_brokers_is_judged_by_asking_again(
    hosts: TwoHosts, client: Workload, server: Workload
) -> None:
    """No slimd sees the destination's end: the source's one asks, and cuts."""
    unbrokered = server.plain().probe(revoked.serve_until_end, "0.0.0.0", OTHER_PORT)
    assert unbrokered.result() == "listening"
    running = client.probe(revoked.wait_for_end, server.address4, OTHER_PORT)
    assert hosts.row("a", running.result()["client_name"]).reason == "no-listener"
    put_in_force(hosts, "b", NO_CLIENT)
    assert running.result() in ENDED
    assert unbrokered.result() in ENDED
    unbrokered.stop()


def test_a_connection_within_one_host_is_cut(
    hosts: TwoHosts, server: Workload, ends: Running
) -> None:
    neighbour = hosts.workload("b", "neighbour", app="client")
    running = neighbour.probe(revoked.wait_for_end, server.address4, END_PORT)
    running.result()
    put_in_force(hosts, "b", NO_CLIENT)
    assert running.result() in ENDED
    assert ends.result() in ENDED


def test_a_lost_reset_is_made_good_by_the_control_channel(
    hosts: TwoHosts, client: Workload, server: Workload, ends: Running
) -> None:
    running = connect_to_end(hosts, client, server, "fast")
    with filtering(hosts.host("a").netns, "tcp sport 20000-29999 tcp flags & rst == rst drop"):
        put_in_force(hosts, "b", NO_CLIENT)
        assert running.result() in ENDED
        assert ends.result() in ENDED
        counters = hosts.status("a").counters
        assert counters["connections_cut_by_peer"] >= 1


def test_an_administrator_cuts_what_matches(
    hosts: TwoHosts, client: Workload, other: Workload, greeter: Workload, ends: Running
) -> None:
    counting = other.probe(revoked.count_up, greeter.address4, PORT)
    assert counting.result() == "counting"
    running = connect_to_end(hosts, client, greeter, "fast")
    shown = hosts.slimds["a"].slimctl("cut", "workload:client", "--dry-run")
    assert f"{greeter.address4}:{END_PORT}" in shown
    said = hosts.slimds["a"].slimctl("cut", "workload:client", "--yes")
    assert said.splitlines()[-1] == "1 cut"
    assert running.result() in ENDED
    assert ends.result() in ENDED
    counting.tell("stop")
    assert counting.result() > 0
    # It is not policy: who connects again is let in.
    assert "peer" in client.call(peers.try_visit, greeter.address4, PORT)


# --- no window --------------------------------------------------------------------------------


def judge(seen: list[list[Any]], forbidden: list[tuple[float, float]]) -> None:
    """None that was begun while policy was known to forbid it came through."""
    slipped = [
        (begun, outcome)
        for begun, outcome in seen
        if outcome == "allowed" and any(since < begun < until for since, until in forbidden)
    ]
    assert slipped == []
    tried = [begun for begun, _ in seen if any(a < begun < b for a, b in forbidden)]
    assert tried, "nobody tried while it was forbidden"


def stop_hammers(hammers: list[Running]) -> list[list[Any]]:
    for hammer in hammers:
        hammer.tell("stop")
    return [attempt for hammer in hammers for attempt in hammer.result()]


def start_hammers(workload: Workload, server: Workload, count: int = 3) -> list[Running]:
    hammers = [workload.probe(revoked.hammer, server.address4, PORT) for _ in range(count)]
    for hammer in hammers:
        assert hammer.result() == "hammering"
    return hammers


@pytest.mark.parametrize(
    ("host", "before", "rules"),
    [
        ("b", ALLOW, NO_CLIENT),
        ("a", ALLOW, NO_CLIENT_OUT),
        ("a", deny("elsewhere", "client", "nobody", direction="egress"), NO_CLIENT_OUT),
    ],
    ids=["ingress", "egress", "egress of an isolated workload"],
)
def test_a_change_of_policy_leaves_no_window(
    hosts: TwoHosts,
    client: Workload,
    other: Workload,
    greeter: Workload,
    host: str,
    before: str,
    rules: str,
) -> None:
    """From the moment that reload is done nobody comes through, and who is allowed always does."""
    put_in_force(hosts, host, before)
    hammers, allowed = start_hammers(client, greeter), start_hammers(other, greeter, 1)
    forbidden = []
    for _ in range(5):
        since = put_in_force(hosts, host, rules)
        time.sleep(0.1)
        forbidden.append((since, time.monotonic()))
        put_in_force(hosts, host, before)
        time.sleep(0.1)
    seen = stop_hammers(hammers)
    judge(seen, forbidden)
    assert any(outcome == "allowed" for _, outcome in seen)
    assert {outcome for _, outcome in stop_hammers(allowed)} == {"allowed"}


def test_a_peer_that_cannot_be_told_finds_its_flows_gone(
    hosts: TwoHosts, client: Workload, greeter: Workload
) -> None:
    """Without the channel host a goes on with what it knows, and host b admits nobody by it."""
    hammers = start_hammers(client, greeter)
    eventually(lambda: hosts.rows("b", "in"), "connections come through")
    silence = "tcp dport 7946 drop", "tcp sport 7946 drop"
    with filtering(hosts.host("b").netns, *silence):
        since = put_in_force(hosts, "b", NO_CLIENT)
        # After the first reset each asks anew, and waits for the resolve budget in vain.
        time.sleep(2.5)
        judge(stop_hammers(hammers), [(since, float("inf"))])
    put_in_force(hosts, "b", ALLOW)

    def is_fast() -> bool:
        running = client.probe(peers.stay, greeter.address4, PORT)
        path = hosts.row("a", running.result()["client_name"]).path
        running.stop()
        return path == "fast"

    eventually(is_fast, "the channel has recovered", 15)


def test_sighup_leaves_no_window(hosts: TwoHosts, client: Workload, greeter: Workload) -> None:
    """Of a signal nobody is told when it is done, but the counters."""
    hammers = start_hammers(client, greeter)
    reloads = hosts.status("b").counters["reloads"]
    write_rules(hosts, "b", NO_CLIENT)
    os.kill(hosts.pid("b", "control"), signal.SIGHUP)
    eventually(lambda: hosts.status("b").counters["reloads"] > reloads, "reloaded")
    # Counted when the swap is done; what was let in until then is cut a moment later.
    eventually(lambda: not hosts.rows("b", "in"), "no connection is left")
    since = time.monotonic()
    time.sleep(0.2)
    judge(stop_hammers(hammers), [(since, float("inf"))])


def test_a_restart_with_another_policy_leaves_no_window(
    hosts: TwoHosts, client: Workload, greeter: Workload, ends: Running
) -> None:
    """From the moment that the old slimd is gone: its flows do not outlive its policy."""
    running = connect_to_end(hosts, client, greeter, "fast")
    hammers = start_hammers(client, greeter)
    write_rules(hosts, "b", NO_CLIENT)
    # Returns when slimd is gone, and traps before it.
    hosts.slimds["b"].slimctl("stop")
    since = time.monotonic()
    time.sleep(0.2)
    hosts.start_slimd("b")
    assert running.result() in ENDED
    assert ends.result() in ENDED
    time.sleep(0.2)
    judge(stop_hammers(hammers), [(since, float("inf"))])


@pytest.mark.parametrize("roles", [("control",), ("control", "traps")], ids=" and ".join)
def test_a_crash_and_another_policy_leave_no_window_once_slimd_answers(
    hosts: TwoHosts,
    client: Workload,
    greeter: Workload,
    ends: Running,
    roles: tuple[str, ...],
) -> None:
    running = connect_to_end(hosts, client, greeter, "fast")
    hammers = start_hammers(client, greeter)
    write_rules(hosts, "b", NO_CLIENT)
    for pid in [hosts.pid("b", role) for role in roles]:
        os.kill(pid, signal.SIGKILL)
    hosts.start_slimd("b")
    since = time.monotonic()
    assert running.result() in ENDED
    assert ends.result() in ENDED
    time.sleep(0.2)
    judge(stop_hammers(hammers), [(since, float("inf"))])


# --- labels -----------------------------------------------------------------------------------


def test_labels_that_change_are_judged_at_the_other_host_too(
    hosts: TwoHosts, server: Workload, ends: Running
) -> None:
    """The namespace is declared; its new labels are those of a workload that is not let in."""
    workload = hosts.workload("a", "declared", app="other")
    write_declaration(hosts, workload, "other")
    put_in_force(hosts, "b", NO_CLIENT)
    running = connect_to_end(hosts, workload, server, "fast")
    write_declaration(hosts, workload, "client")
    assert running.result() in ENDED
    assert ends.result() in ENDED


def write_declaration(hosts: TwoHosts, workload: Workload, app: str) -> None:
    put_in_force(
        hosts,
        "a",
        f'{ALLOW}[[slim_run.namespace]]\nnetns = "/run/netns/{workload.netns}"\n'
        f'workload = "{workload.name}"\nnamespace = "default"\nlabels = {{ app = "{app}" }}\n',
    )
