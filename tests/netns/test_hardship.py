"""Shared, closed and used-up fds: what slimd works on changes under it, or it runs out itself."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
from typing import TYPE_CHECKING

import pytest

from support.firewall import filtering
from support.polling import eventually
from support.probes import fallbacks, hardship, peers
from support.two_hosts import Settings, TwoHosts, Workload

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_netns]

PORT = 8000
HURRY = """
[limits]
resolve_budget_ms = 1000
connect_budget_ms = 400
"""
HOST_PORTS = "tcp dport 20000-29999"


@pytest.fixture(scope="module")
def hosts() -> Iterator[TwoHosts]:
    """slimds that do not wait long for a handshake."""
    with TwoHosts(Settings(more=HURRY), Settings(more=HURRY)) as two_hosts:
        yield two_hosts


@pytest.fixture
def fresh_server(hosts: TwoHosts) -> Workload:
    """A workload on host b whose host path is not known to have failed."""
    workload = hosts.workload("b", "server")
    workload.probe(peers.greet_server, "0.0.0.0", PORT).result()
    return workload


@contextlib.contextmanager
def without_fds(pid: int) -> Iterator[None]:
    """The process cannot open anything more."""
    used = {int(name) for name in os.listdir(f"/proc/{pid}/fd")}
    lowest_free = next(number for number in range(len(used) + 1) if number not in used)
    _, hard = before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (lowest_free, hard))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


# --- the program's fds ------------------------------------------------------------------------


def test_copy_that_is_in_nobodys_fd_table_does_not_keep_the_connection_from_being_made(
    hosts: TwoHosts, client: Workload, fresh_server: Workload
) -> None:
    running = client.probe(hardship.stay_with_copy_in_flight, fresh_server.address4, PORT)
    seen = running.result()
    assert seen["peer"] == seen["accepted"] == seen["client_name"]
    assert hosts.row("a", seen["client_name"]).path == "fast"
    running.stop()


@pytest.mark.needs_program("nft")
def test_connect_ends_though_the_program_forks_meanwhile_and_the_host_path_fails(
    hosts: TwoHosts, client: Workload, fresh_server: Workload
) -> None:
    client.call(peers.visit, fresh_server.address4, PORT)
    with filtering(hosts.host("b").netns, f'iifname "eth0" {HOST_PORTS} drop'):
        seen = client.call(hardship.connect_and_fork, fresh_server.address4, PORT)
    assert seen["peer"] == seen["accepted"] == seen["client_name"]


@pytest.mark.needs_program("nft")
def test_socket_shared_with_a_child_is_not_connected_anew_for_one_of_them(
    hosts: TwoHosts, client: Workload, fresh_server: Workload
) -> None:
    client.call(peers.visit, fresh_server.address4, PORT)
    rule = f'iifname "eth0" {HOST_PORTS} reject with tcp reset'
    with filtering(hosts.host("b").netns, rule):
        seen = client.call(hardship.connect_again_after_fork, fresh_server.address4, PORT)
    assert seen == {"errors": ["ECONNREFUSED", "ECONNABORTED", ""]}


@pytest.mark.needs_program("nft")
def test_fd_number_that_was_closed_and_used_anew_is_left_alone(
    hosts: TwoHosts, client: Workload, fresh_server: Workload
) -> None:
    client.call(peers.visit, fresh_server.address4, PORT)
    with filtering(hosts.host("b").netns, f'iifname "eth0" {HOST_PORTS} drop'):
        seen = client.call(hardship.close_under_connect, fresh_server.address4, PORT)
    assert seen == {"same": True}


@pytest.mark.needs_program("nft")
def test_refusal_within_the_connect_call_makes_the_next_one_use_the_overlay(
    hosts: TwoHosts, fresh_server: Workload
) -> None:
    """On one host the reset may be there before connect has returned."""
    neighbour = hosts.workload("b", "neighbour")
    neighbour.call(peers.visit, fresh_server.address4, PORT)
    with filtering(hosts.host("b").netns, f'iifname "lo" {HOST_PORTS} reject with tcp reset'):
        seen = neighbour.call(fallbacks.refused_then_connected, fresh_server.address4, PORT)
    assert seen["errors"] == ["ECONNREFUSED"]
    assert seen["peer"] == seen["client_name"]


@pytest.mark.parametrize("nonblocking", [False, True], ids=["blocking", "non-blocking"])
def test_connect_to_a_closed_listener_is_refused_although_the_keeper_has_not_closed_its_own_yet(
    hosts: TwoHosts, server: Workload, nonblocking: bool
) -> None:
    port = 8310 + nonblocking
    running = server.probe(hardship.connect_after_close, server.address4, port, nonblocking)
    assert running.result() == "listening"
    keeper = hosts.pid("b", "keeper")
    os.kill(keeper, signal.SIGSTOP)
    try:
        running.tell("")
        eventually(
            lambda: (
                not any(row.overlay_local.endswith(f":{port}") for row in hosts.rows("b", "listen"))
            ),
            "the listener is gone",
        )
    finally:
        os.kill(keeper, signal.SIGCONT)
    assert running.result() == "ECONNREFUSED"


# --- slimd's own ------------------------------------------------------------------------------


def test_accept_gives_no_unexamined_connection_when_slimd_has_no_fd_left(
    hosts: TwoHosts, client: Workload, server: Workload
) -> None:
    port = 8300
    running = server.probe(hardship.accept_each_line, "0.0.0.0", port)
    assert running.result() == "listening"
    visitor = client.probe(hardship.send_and_stay, server.address4, port, "data")
    name = visitor.result()
    with without_fds(hosts.pid("b", "traps")):
        running.tell("")
        assert running.result() == {"errno": "EMFILE"}
    running.tell("")
    assert running.result() == {"peer": name, "data": "data"}


def test_connect_does_not_go_round_slimd_when_it_has_no_fd_left(
    hosts: TwoHosts, client: Workload, fresh_server: Workload
) -> None:
    pid = hosts.pid("a", "traps")
    # Started before: a new container would need an fd too.
    running = client.probe(hardship.connect_each_line, fresh_server.address4, PORT)
    assert running.result() == "started"
    with without_fds(pid):
        running.tell("")
        assert running.result() == "EMFILE"
    running.tell("")
    assert running.result() == ""
    eventually(lambda: hosts.pid("a", "traps") == pid, "traps has lived through it")
