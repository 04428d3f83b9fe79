"""bind(2), listen(2) and accept(2), of one listener and of groups."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING

import pytest

from support.compatibility import Cases
from support.polling import eventually
from support.probes import listening, peers, visiting

if TYPE_CHECKING:
    from support.pairs import Pair
    from support.residents import Resident

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_netns]
COMPATIBILITY = Cases(heading="bind, listen, accept")

IPV4 = pytest.mark.parametrize("version", [4])


def test_accept_flags_and_empty_queue(pair: Pair, port: int) -> None:
    running = pair.serve(listening.accept_calls, port)
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


def test_accept_ends_with_the_receive_timeout(pair: Pair, port: int) -> None:
    seen = pair.server.call(listening.accept_with_timeout, pair.anywhere, port)
    assert seen["errno"] == "EAGAIN"
    assert 0.25 < seen["took_s"] < 3


def test_signal_without_restart_ends_accept_with_eintr(pair: Pair, port: int) -> None:
    running = pair.serve(listening.accept_interrupted, port, False)
    assert running.result() == "listening"
    _wait_until_blocked(running.pid)
    os.kill(running.pid, signal.SIGUSR1)
    assert running.result() == {"errno": "EINTR", "signals": 1}


def test_signal_with_restart_lets_accept_go_on(pair: Pair, port: int) -> None:
    running = pair.serve(listening.accept_interrupted, port, True)
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


def test_accept_with_a_bad_pointer_leaves_the_listener_fine(pair: Pair, port: int) -> None:
    running = pair.serve(listening.accept_bad_pointer, port)
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


def test_names_of_a_listener_and_listen_twice(pair: Pair, port: int) -> None:
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
def test_v6only_of_a_listener_is_what_the_program_set(pair: Pair, port: int) -> None:
    assert pair.server.call(listening.v6only_of_listeners, port) == {
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


def test_close_and_bind_again_at_once_a_thousand_times(pair: Pair, port: int) -> None:
    assert pair.server.call(listening.rebind, pair.anywhere, port, 1000) == 1000


@pytest.mark.parametrize("has_connected", [False, True], ids=["unvisited", "visited"])
def test_connect_after_a_listener_was_closed_is_refused(pair: Pair, has_connected: bool) -> None:
    seen = pair.server.call(listening.connect_after_close, pair.address, 60, has_connected)
    assert seen == ["ECONNREFUSED"] * 60


def test_bind_to_a_port_in_use(pair: Pair, port: int) -> None:
    assert pair.server.call(listening.bind_in_use, pair.anywhere, port) == "EADDRINUSE"


@IPV4
def test_reuseport_group_serves_every_connection_with_true_addresses(pair: Pair, port: int) -> None:
    running = pair.serve(listening.reuseport_group, port, 3)
    members = {running.result() for _ in range(3)}
    seen = pair.client.call(visiting.visit_often, pair.address, port, 60)
    assert seen["wrong"] == []
    served = dict(seen["served"])
    assert sum(served.values()) == 60
    assert set(served) == members


@IPV4
def test_reuseport_group_serves_plain_peers(stranger: Resident, pair: Pair, port: int) -> None:
    running = pair.serve(listening.reuseport_group, port, 3)
    members = {running.result() for _ in range(3)}
    seen = stranger.call(visiting.visit_often, pair.address, port, 60)
    assert seen["wrong"] == []
    assert sum(count for _, count in seen["served"]) == 60
    assert {pid for pid, _ in seen["served"]} <= members


def _wait_until_blocked(pid: int) -> None:
    """Until the process sleeps in its system call, whether held or in the kernel's accept."""

    def is_asleep() -> bool:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] == "S"

    for _ in range(5):
        eventually(is_asleep, f"process {pid} sleeps")
        time.sleep(0.02)  # It may have slept on its way there.
