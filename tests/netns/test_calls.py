"""Socket calls under Slim behave as they do without: each test runs natively and brokered."""

from __future__ import annotations

import itertools
import os
import signal
import time
from typing import TYPE_CHECKING, Any

import pytest

from support.compatibility import Cases
from support.firewall import filtering
from support.polling import eventually
from support.probes import connected, connecting, listening, peers, visiting

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.pairs import Pair
    from support.two_hosts import Running, TwoHosts

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_netns]
COMPATIBILITY = Cases(heading="Socket calls")

FREE_PORT = 8999
EPOLLOUT, EPOLLERR = 4, 8
_ports = itertools.count(8300)
"""No port is used twice, so that no test meets another's connections."""
IPV4 = pytest.mark.parametrize("version", [4])


@pytest.fixture
def silent(hosts: TwoHosts, pair: Pair) -> Iterator[Pair]:
    """The address answers nothing; the brokered client finds that out on the host's network."""
    if pair.is_brokered:
        pair.call(peers.visit)
        with filtering(hosts.host("b").netns, 'iifname "eth0" tcp dport 20000-29999 drop'):
            yield pair
    else:
        with filtering(pair.server.netns, f"tcp dport {pair.port} drop"):
            yield pair


def assert_true_addresses(pair: Pair, greeting: dict[str, Any]) -> None:
    assert greeting["peer"] == greeting["accepted"] == greeting["client_name"]
    assert greeting["name"] == greeting["client_peer"] == peers.endpoint((pair.address, pair.port))
    assert pair.client.address4 in greeting["peer"] or pair.client.address6 in greeting["peer"]


# --- connect ----------------------------------------------------------------------------------


def test_nonblocking_connect_is_in_progress_then_writable(pair: Pair) -> None:
    seen = pair.call(connecting.connect_nonblocking)
    assert seen["first"] == "EINPROGRESS"
    assert seen["events"] & EPOLLOUT
    assert not seen["events"] & EPOLLERR
    assert seen["so_error"] == 0
    assert seen["second_is_fine"]
    assert seen["third"] == "EISCONN"
    assert seen["still_nonblocking"]
    assert_true_addresses(pair, seen["greeting"])


def test_socket_registered_with_epoll_before_connect_reports_the_connection(pair: Pair) -> None:
    seen = pair.call(connecting.connect_and_poll_first)
    assert seen["registered"] == "EEXIST"
    assert_true_addresses(pair, seen["greeting"])


def test_connect_on_a_connected_socket_is_eisconn(pair: Pair) -> None:
    assert pair.call(connecting.connect_again_while_connected) == ["", "EISCONN", "EISCONN"]


def test_connect_to_a_closed_port_is_refused(pair: Pair) -> None:
    assert pair.client.call(connecting.connect_refused, pair.address, FREE_PORT) == {
        "blocking": "ECONNREFUSED",
        "so_error_after": 0,
        "nonblocking": "EINPROGRESS",
        "so_error": "ECONNREFUSED",
    }


def test_a_socket_can_be_connected_after_a_refusal(pair: Pair) -> None:
    assert_true_addresses(pair, pair.call(connecting.refused_then_connected, FREE_PORT))


@pytest.mark.needs_program("nft")
@IPV4
def test_connect_ends_with_the_send_timeout(silent: Pair) -> None:
    seen = silent.call(connecting.connect_with_timeout, 0.5)
    assert seen["errno"] == "EINPROGRESS"
    assert 0.4 < seen["took_s"] < 3


@pytest.mark.needs_program("nft")
@IPV4
def test_signal_without_restart_ends_a_blocking_connect_with_eintr(silent: Pair) -> None:
    seen = silent.call(connecting.connect_interrupted, False)
    assert (seen["errno"], seen["signals"]) == ("EINTR", 1)
    assert seen["took_s"] < 3


@pytest.mark.needs_program("nft")
@IPV4
@pytest.mark.differs(
    "if only the host's path is silent, the overlay is used when connect_budget_ms is over; "
    "natively it waits for the destination"
)
def test_signal_with_restart_lets_a_blocking_connect_go_on(silent: Pair) -> None:
    """Natively until it is shut down; brokered the overlay is there when the budget is used up."""
    seen = silent.call(connecting.connect_interrupted, True)
    assert seen["signals"] == 1
    assert seen["took_s"] > 0.5
    assert seen["errno"] != "EINTR"


def test_disconnected_socket_can_be_connected_again(pair: Pair) -> None:
    seen = pair.call(connecting.disconnect)
    assert (seen["disconnect"], seen["peer"], seen["nodelay"]) == (0, "ENOTCONN", 1)
    assert_true_addresses(pair, seen["greeting"])


def test_connect_from_a_bound_address_and_port(pair: Pair, version: int) -> None:
    own = pair.client.address(version)
    seen = pair.call(connecting.connect_bound, own, 7777)
    assert_true_addresses(pair, seen)
    assert seen["peer"] == peers.endpoint((own, 7777))


def test_connect_from_a_bound_port_on_the_wildcard_address(pair: Pair, version: int) -> None:
    seen = pair.call(connecting.connect_bound, pair.anywhere, 7778)
    assert_true_addresses(pair, seen)
    assert seen["peer"] == peers.endpoint((pair.client.address(version), 7778))


def test_connect_with_bad_arguments_fails_as_the_kernel_says(pair: Pair) -> None:
    assert pair.call(connecting.connect_bad_arguments) == {
        "bad pointer": "EFAULT",
        "no pointer": "EFAULT",
        "length 0": "EINVAL",
        "length 1": "EINVAL",
        "short": "EINVAL",
        "length negative": "EINVAL",
        "length huge": "EINVAL",
        "family": "EAFNOSUPPORT",
        "no fd": "EBADF",
        "no socket": "ENOTSOCK",
    }


@IPV4
def test_connect_of_an_ipv6_socket_to_a_mapped_ipv4_address(pair: Pair) -> None:
    seen = pair.client.call(connecting.connect_mapped, pair.address, pair.port)
    assert_true_addresses(pair, seen)
    assert seen["raw_peer"] == f"::ffff:{pair.address}"


@IPV4
def test_connects_of_many_threads_at_once(pair: Pair) -> None:
    seen = pair.call(visiting.thread_visits, 32, 20)
    assert (seen["done"], seen["wrong"]) == (640, [])
    assert seen["fds"] < 10


# --- names ------------------------------------------------------------------------------------


def test_names_before_and_after_connect(pair: Pair) -> None:
    seen = pair.call(connected.names)
    assert seen["before"] == peers.endpoint((pair.anywhere, 0))
    assert seen["peer_before"] == "ENOTCONN"
    assert_true_addresses(pair, seen["greeting"])
    assert seen["after_end"] == seen["greeting"]["client_name"]


def test_names_with_bad_arguments(pair: Pair, version: int) -> None:
    size = 16 if version == 4 else 28
    seen = pair.call(connected.names_with_bad_arguments)
    for call in ("getsockname", "getpeername"):
        assert seen[f"{call}: bad pointer"] == "EFAULT"
        assert seen[f"{call}: bad length pointer"] == "EFAULT"
        assert seen[f"{call}: negative length"] == "EINVAL"
        assert seen[f"{call}: length of 4"] == [size, True]
        assert seen[f"{call}: length of 0"] == size


# --- what the fd keeps ------------------------------------------------------------------------


def test_options_set_before_connect_are_in_force_after_it(pair: Pair) -> None:
    for name, (before, after) in pair.call(connected.options).items():
        assert before == after, name


def test_flags_and_owner_of_the_fd_are_kept(pair: Pair) -> None:
    assert pair.call(connected.file_state) == [[True, True]] * 4


def test_both_numbers_of_a_duplicated_socket_are_the_connection(pair: Pair) -> None:
    seen = pair.call(connected.duplicate_before_connect)
    assert seen["same_file"]
    assert seen["copy_name"] == seen["greeting"]["client_name"]
    assert seen["copy_peer"] == seen["greeting"]["client_peer"]
    assert_true_addresses(pair, seen["greeting"])


def test_socket_shared_with_a_child_is_connected_for_both(pair: Pair) -> None:
    assert_true_addresses(pair, pair.call(connected.fork_before_connect))


def test_connection_lives_on_in_a_child(pair: Pair) -> None:
    assert_true_addresses(pair, pair.call(connected.inherit_connection))


# --- accept, listen ---------------------------------------------------------------------------


def serve(pair: Pair, probe: Any, *more: object) -> tuple[Running, int]:
    port = next(_ports)
    return pair.server.probe(probe, pair.anywhere, port, *more), port


def test_accept_flags_and_empty_queue(pair: Pair) -> None:
    running, port = serve(pair, listening.accept_calls)
    assert running.result() == {"empty": "EAGAIN"}
    visitor = pair.client.probe(visiting.visit_in_turn, pair.address, port, 4)
    assert running.result() == {"nonblocking_of_accept": False}
    seen = [running.result() for _ in range(3)]
    assert [each["nonblocking"] for each in seen] == [False, True, False]
    assert [each["cloexec"] for each in seen] == [False, False, True]
    assert running.result() == {"wrong_flags": "EINVAL"}
    assert running.result() == {"empty": "EAGAIN"}
    names = visitor.result()
    assert [each["peer"] for each in seen] == names[1:]


def test_accept_ends_with_the_receive_timeout(pair: Pair) -> None:
    port = next(_ports)
    seen = pair.server.call(listening.accept_with_timeout, pair.anywhere, port)
    assert seen["errno"] == "EAGAIN"
    assert 0.25 < seen["took_s"] < 3


def test_signal_without_restart_ends_accept_with_eintr(pair: Pair) -> None:
    running, _ = serve(pair, listening.accept_interrupted, False)
    assert running.result() == "listening"
    _wait_until_blocked(running.pid)
    os.kill(running.pid, signal.SIGUSR1)
    assert running.result() == {"errno": "EINTR", "signals": 1}


def test_signal_with_restart_lets_accept_go_on(pair: Pair) -> None:
    running, port = serve(pair, listening.accept_interrupted, True)
    assert running.result() == "listening"
    _wait_until_blocked(running.pid)
    for _ in range(3):
        os.kill(running.pid, signal.SIGUSR1)
        time.sleep(0.05)  # Three signals and not one that is pending thrice.
    visitor = pair.client.probe(peers.visit_plainly, pair.address, port)
    seen = running.result()
    assert seen["errno"] == ""
    # Python notes a signal when the C call has returned: three may be seen as one.
    assert seen["signals"] >= 1
    assert visitor.result() == "echoed"


def test_accept_with_a_bad_pointer_leaves_the_listener_fine(pair: Pair) -> None:
    running, port = serve(pair, listening.accept_bad_pointer)
    assert running.result() == "listening"
    lost = pair.client.probe(peers.visit_plainly, pair.address, port)
    assert running.result() == {"fd": -1, "errno": "EFAULT"}
    assert lost.result() in ("closed", "reset")
    assert pair.client.call(peers.visit_plainly, pair.address, port) == "echoed"


def test_accept_where_nobody_listens(pair: Pair) -> None:
    assert pair.call(listening.accept_elsewhere) == {
        "fresh": "EINVAL",
        "connected": "EINVAL",
        "listen while connected": "EINVAL",
        "bind while connected": "EINVAL",
        "datagram": "ENOTSUP",
    }


def test_names_of_a_listener_and_listen_twice(pair: Pair) -> None:
    port = next(_ports)
    name = peers.endpoint((pair.anywhere, port))
    assert pair.server.call(listening.listener_names, pair.anywhere, port) == {
        "name": name,
        "peer": "ENOTCONN",
        "accepts": 1,
        "name after a second listen": name,
        "connect": "EISCONN",
        "name after connect": name,
    }


@IPV4
def test_v6only_of_a_listener_is_what_the_program_set(pair: Pair) -> None:
    first, _, _ = (next(_ports) for _ in range(3))
    assert pair.server.call(listening.v6only_of_listeners, first) == {
        "v6only 0": [0, "0000", "00000000"],
        "v6only 1": [1, "0100", "01000000"],
        "nowhere 0": [-1, "EFAULT", 4],
        "nowhere 1": [-1, "EFAULT", 4],
        "negative 0": [0, 7, 7, 7, 4],
        "negative 1": [1, 7, 7, 7, 4],
        "ipv4": "ENOTSUP",
    }


@IPV4
def test_listen_without_bind(pair: Pair) -> None:
    assert pair.server.call(listening.listen_without_bind).startswith("0.0.0.0:")


def test_close_and_bind_again_at_once_a_thousand_times(pair: Pair) -> None:
    assert pair.server.call(listening.rebind, pair.anywhere, next(_ports), 1000) == 1000


@pytest.mark.parametrize("has_connected", [False, True], ids=["unvisited", "visited"])
def test_connect_after_a_listener_was_closed_is_refused(pair: Pair, has_connected: bool) -> None:
    seen = pair.server.call(listening.connect_after_close, pair.address, 60, has_connected)
    assert seen == ["ECONNREFUSED"] * 60


def test_bind_to_a_port_in_use(pair: Pair) -> None:
    assert pair.server.call(listening.bind_in_use, pair.anywhere, next(_ports)) == "EADDRINUSE"


@IPV4
def test_reuseport_group_serves_every_connection_with_true_addresses(pair: Pair) -> None:
    running, port = serve(pair, listening.reuseport_group, 3)
    members = {running.result() for _ in range(3)}
    seen = pair.client.call(visiting.visit_often, pair.address, port, 60)
    assert seen["wrong"] == []
    served = dict(seen["served"])
    assert sum(served.values()) == 60
    assert set(served) == members


@IPV4
def test_reuseport_group_serves_plain_peers(hosts: TwoHosts, pair: Pair) -> None:
    running, port = serve(pair, listening.reuseport_group, 3)
    members = {running.result() for _ in range(3)}
    seen = hosts.plain("a").call(visiting.visit_often, pair.address, port, 60)
    assert seen["wrong"] == []
    assert sum(count for _, count in seen["served"]) == 60
    assert {pid for pid, _ in seen["served"]} <= members
    running.stop()


def _wait_until_blocked(pid: int) -> None:
    """Until the process sleeps in its system call, whether held or in the kernel's accept."""

    def is_asleep() -> bool:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] == "S"

    for _ in range(5):
        eventually(is_asleep, f"process {pid} sleeps")
        time.sleep(0.02)  # It may have slept on its way there.
