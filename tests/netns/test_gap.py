"""slimd is away for longer than the gap limit: what goes on, over what, and what waits for it."""

from __future__ import annotations

import os
import select
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from support.crashes import kill
from support.polling import eventually
from support.probes import gaps, peers
from support.two_hosts import PATIENCE, Settings, TwoHosts, Workload

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.two_hosts import Running

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_netns]

PORT = 8000
AWAY = """
gap_limit_s = 1
[plugins.rules]
default = "allow"
[[plugins.rules.rules]]
name = "nobody-to-that-port"
action = "deny"
direction = "egress"
source = { kind = "isolated" }
ports = [7777]
"""


@pytest.fixture(scope="module")
def hosts() -> Iterator[TwoHosts]:
    """Host a's slimd may be away for a second."""
    with TwoHosts(a=Settings(more=PATIENCE + AWAY)) as two_hosts:
        yield two_hosts


@pytest.fixture(scope="module")
def server(hosts: TwoHosts) -> Workload:
    server = hosts.workload("b", "server", app="server")
    server.probe(peers.greet_server, "0.0.0.0", PORT).result()
    return server


def stop_slimd(hosts: TwoHosts) -> None:
    """Control and traps of host a are stopped; the keeper stays."""
    pids = [hosts.pid("a", role) for role in ("control", "traps")]
    os.kill(pids[0], signal.SIGTERM)
    eventually(lambda: not any(map(_is_running, pids)), "slimd of host a has ended")


def _is_running(pid: int) -> bool:
    return Path(f"/proc/{pid}/exe").exists()


def has_said_something(running: Running) -> bool:
    assert running.popen.stdout is not None
    return bool(select.select([running.popen.stdout.fileno()], [], [], 0)[0])


def try_everything(hosts: TwoHosts, server: Workload, *options: str) -> Running:
    """A program in a workload of its own on host a, which was brokered before."""
    name = options[0].strip("-") if options else "default"
    running = (
        hosts.workload("a", name).under(*options).probe(gaps.try_everything, server.address4, PORT)
    )
    assert running.result() == "ready"
    running.tell("while slimd is there")
    seen = running.result()
    assert hosts.rows("a", "out", to=f"{server.address4}:{PORT}")
    assert UNTOUCHED.items() <= seen.items()
    return running


UNTOUCHED = {"loopback": "echoed", "unix": "echoed"}


def test_open_workloads_use_the_overlay_and_closed_ones_fail(
    hosts: TwoHosts, server: Workload
) -> None:
    opened = try_everything(hosts, server, "--fail-open")
    closed = try_everything(hosts, server, "--fail-closed")
    default = try_everything(hosts, server)
    stop_slimd(hosts)

    # Their calls wait until the limit is over, and are answered then.
    for running in (opened, closed, default):
        running.tell("while slimd is away")
    seen = opened.result()
    address = seen["connect"].partition(":")[0]
    assert seen == {
        "connect": seen["connect"],
        "listen": "0.0.0.0",
        "listen again": "0.0.0.0",
        "udp": server.address4,
        **UNTOUCHED,
    }
    assert address.startswith("10.")
    for running in (closed, default):
        assert running.result() == {
            "connect": "EACCES",
            "listen": "EACCES",
            "listen again": "EACCES",
            "udp": server.address4,
            **UNTOUCHED,
        }

    hosts.start_slimd("a")
    for running in (opened, closed, default):
        running.tell("slimd is back")
        seen = running.result()
        assert (seen["listen"], seen["listen again"]) == ("0.0.0.0", "0.0.0.0")
        assert seen["udp"] == server.address4
        assert seen["connect"].startswith("10.")
        running.stop()


def test_the_overlay_is_no_way_round_a_policy_while_slimd_is_away(
    hosts: TwoHosts, server: Workload
) -> None:
    isolated = hosts.workload("a", "isolated", kind="isolated").under("--fail-open")
    running = isolated.probe(gaps.try_everything, server.address4, PORT)
    assert running.result() == "ready"
    stop_slimd(hosts)
    running.tell("while slimd is away")
    seen = running.result()
    assert (seen["connect"], seen["udp"]) == ("EACCES", server.address4)
    assert UNTOUCHED.items() <= seen.items()
    hosts.start_slimd("a")
    running.tell("slimd is back")
    assert running.result()["connect"].startswith("10.")
    running.stop()


def test_connect_of_an_isolated_workload_waits_for_a_control_that_was_killed(
    hosts: TwoHosts, server: Workload
) -> None:
    """Nobody else knows the verdict, and the overlay is not lawful."""
    isolated = hosts.workload("a", "waiting-isolated", kind="isolated")
    running = isolated.probe(gaps.try_everything, server.address4, PORT)
    assert running.result() == "ready"
    kill(hosts, "a", "control")
    running.tell("while control is away")
    hosts.start_slimd("a")
    assert running.result()["connect"].startswith("10.")
    assert hosts.rows("a", "out", to=f"{server.address4}:{PORT}")
    running.stop()


def test_calls_on_brokered_sockets_wait_for_the_successor(
    hosts: TwoHosts, server: Workload
) -> None:
    client = hosts.workload("a", "waiting").under("--fail-open")
    running = client.probe(peers.stay, server.address4, PORT)
    seen = running.result()
    assert hosts.row("a", seen["client_name"]).path == "fast"
    other = try_everything(hosts, server, "--fail-open")
    stop_slimd(hosts)
    running.tell("echo")
    assert running.result() == 1000
    # It asks for its names now. Another program's calls show that the gap has begun.
    other.tell("while slimd is away")
    assert other.result()["udp"] == server.address4
    assert not has_said_something(running)

    hosts.start_slimd("a")
    assert running.result() == {name: seen[name] for name in ("client_name", "client_peer")}
    for each in (running, other):
        each.stop()
