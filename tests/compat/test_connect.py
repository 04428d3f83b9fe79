"""connect(2): what it returns, when, and what the socket is afterwards."""

from __future__ import annotations

from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

import pytest

from support.compatibility import Cases
from support.probes import connecting, peers, visiting
from support.silence import silence

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.pairs import Both, Pair
    from support.two_hosts import TwoHosts

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_netns]
COMPATIBILITY = Cases(heading="connect")

FREE_PORT = 8999
EPOLLOUT, EPOLLERR = 4, 8
IPV4 = pytest.mark.parametrize("version", [4])


@pytest.fixture
def silent(hosts: TwoHosts, pair: Pair, port: int) -> Iterator[Pair]:
    """The server answers nothing; the brokered client finds that out on the host's network."""
    with silence(hosts, pair, port) as found:
        yield found


def test_nonblocking_connect_is_in_progress_then_writable(pair: Pair) -> None:
    seen = pair.call(connecting.connect_nonblocking)
    assert seen["first"] == "EINPROGRESS"
    assert seen["events"] & EPOLLOUT
    assert not seen["events"] & EPOLLERR
    assert seen["so_error"] == 0
    assert seen["second_is_fine"]
    assert seen["third"] == "EISCONN"
    assert seen["still_nonblocking"]
    pair.check_addresses(seen["greeting"])


def test_socket_registered_with_epoll_before_connect_reports_the_connection(pair: Pair) -> None:
    seen = pair.call(connecting.connect_and_poll_first)
    assert seen["registered"] == "EEXIST"
    pair.check_addresses(seen["greeting"])


def test_connect_on_a_connected_socket_is_eisconn(pair: Pair) -> None:
    assert pair.call(connecting.connect_again_while_connected) == ["", "EISCONN", "EISCONN"]


def test_connect_to_a_closed_port_is_refused(pair: Pair) -> None:
    assert pair.client.call(connecting.connect_refused, pair.address, FREE_PORT) == {
        "blocking": "ECONNREFUSED",
        "so_error_after": 0,
        "nonblocking": "EINPROGRESS",
        "so_error": "ECONNREFUSED",
    }


def test_nonblocking_connect_to_an_address_that_nobody_has(both: Both, port: int) -> None:
    """It is in progress at once, and fails when the neighbour does not answer."""

    def play(pair: Pair) -> dict[str, Any]:
        nobody = str(ip_address(pair.address) + 100)
        found: dict[str, Any] = pair.client.call(
            connecting.connect_nonblocking_to_nobody, nobody, port
        )
        return found

    seen = both.same(play)
    assert (seen["first"], seen["second"]) == ("EINPROGRESS", "EALREADY")
    assert seen["before"] == []
    assert seen["so_error"] == "EHOSTUNREACH"


def test_a_socket_can_be_connected_after_a_refusal(pair: Pair) -> None:
    pair.check_addresses(pair.call(connecting.refused_then_connected, FREE_PORT))


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
    pair.check_addresses(seen["greeting"])


@IPV4
def test_connect_from_a_bound_address_and_port(pair: Pair) -> None:
    seen = pair.call(connecting.connect_bound, pair.own, 7777)
    pair.check_addresses(seen)
    assert seen["peer"] == peers.endpoint((pair.own, 7777))


@pytest.mark.falls_back("bind(2) sets IPV6_V6ONLY; the host's network has IPv4 only")
@pytest.mark.parametrize("version", [6])
def test_connect_from_a_bound_ipv6_address_and_port(pair: Pair) -> None:
    seen = pair.call(connecting.connect_bound, pair.own, 7777)
    pair.check_addresses(seen, path="own")
    assert seen["peer"] == peers.endpoint((pair.own, 7777))


def test_connect_from_a_bound_port_on_the_wildcard_address(pair: Pair, version: int) -> None:
    seen = pair.call(connecting.connect_bound, pair.anywhere, 7778)
    pair.check_addresses(seen)
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
    pair.check_addresses(seen)
    assert seen["raw_peer"] == f"::ffff:{pair.address}"


@IPV4
def test_connects_of_many_threads_at_once(pair: Pair) -> None:
    seen = pair.call(visiting.thread_visits, 32, 20)
    assert (seen["done"], seen["wrong"]) == (640, [])
    assert seen["fds"] < 10
