"""traps dies at every point of a call, once each: the program gets what it would have got.

The points that a successor has most to do for in the ordinary run, all of them with SLIM_SOAK=1
(tox -e soak).
"""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest

from support import targets
from support.crashes import is_running, wait_until_whole
from support.firewall import filtering
from support.keeping import KeeperClient
from support.polling import eventually
from support.probes import enduring

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.two_hosts import Running, TwoHosts, Workload

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_netns]

SOAK = os.environ.get("SLIM_SOAK", "") not in ("", "0")
PORT = 8200
CRASHING = Path(targets.__path__[0]) / "crashing_traps.py"
ARMED = "/run/slim/crash-at"
Case: TypeAlias = tuple[str, str, str, int]
"""Kind of the exchange; function, before or after it, and at which call of it traps dies."""
HERE = ("before", "after")
CLIENT_POINTS: list[Case] = [
    *[("blocking", point, when, 1) for point in ("replace_fd", "reply") for when in HERE],
    *[("blocking", "established", when, 1) for when in HERE],
    ("bound", "replace_fd", "after", 1),
    # The names that it asks for afterwards.
    *[("blocking", "reply", when, count) for count in (2, 3) for when in HERE],
    # epoll_create and the first connect; registered before the first connect is every second.
    *[("polled", point, when, 1) for point in ("add_fd", "move", "replace_fd") for when in HERE],
    *[("polled", "reply", when, count) for count in (1, 2, 3) for when in HERE],
    ("polled", "replace_fd", "after", 2),
    *[("listen", point, when, 1) for point in ("proceed", "replace_fd", "reply") for when in HERE],
]
SERVER_POINTS: list[Case] = [
    ("blocking", "add_fd", "after", 1),
    *[("blocking", "reply", when, count) for count in (1, 2) for when in HERE],
    *[("polled", "add_fd", "after", count) for count in (1, 2, 4)],
    *[("polled", "reply", when, 1) for when in HERE],
]
LATE_RECORD_POINTS: list[Case] = [
    *[("blocking", point, when, 1) for point in ("replace_fd", "established") for when in HERE],
    ("bound", "replace_fd", "after", 1),
    ("bound", "established", "before", 1),
]
IN_HAND_POINTS: list[Case] = [
    ("blocking", "accepted", "before", 1),
    ("blocking", "add_fd", "before", 1),
]

ORDINARY = {
    ("blocking", "replace_fd", "after", 1),
    ("blocking", "reply", "before", 1),
    ("polled", "move", "before", 1),
    ("polled", "replace_fd", "after", 2),
    ("listen", "replace_fd", "after", 1),
    ("blocking", "add_fd", "after", 1),
    ("polled", "add_fd", "after", 2),
    ("blocking", "accepted", "before", 1),
}


def points(cases: list[Case]) -> pytest.MarkDecorator:
    chosen = [case for case in cases if SOAK or case in ORDINARY]
    return pytest.mark.parametrize("case", chosen, ids=lambda case: " ".join(map(str, case)))


class Crasher:
    """Makes the traps of one host die where it is told to."""

    def __init__(self, hosts: TwoHosts, host: str) -> None:
        self._hosts = hosts
        self._host = host
        self._armed = hosts.machines[host].path(ARMED)
        self._keeper = KeeperClient(str(hosts.run_dir(host) / "keeper.sock"))
        self._argv = [sys.executable, str(CRASHING), ARMED, "--run-dir", "/run/slim"]

    def begin(self) -> None:
        self._keeper.start_traps(*self._argv)
        pid = self._keeper.traps_pid()
        os.kill(pid, 9)
        self._succeed(pid)

    def arm(self, point: str, when: str, count: int) -> int:
        """To die at that point, the next time; gives the pid of who will."""
        written = self._armed.with_suffix(".new")
        written.write_text(f"{point} {when} {count}")
        written.rename(self._armed)
        return self._keeper.traps_pid()

    def wait_for_crash(self, pid: int) -> None:
        eventually(lambda: not self._armed.exists(), "traps comes to that point")
        self._succeed(pid)

    def _succeed(self, pid: int) -> None:
        """Start the successor at once: the keeper would wait longer each time."""
        eventually(lambda: not is_running(pid), "traps is gone")

        def is_new() -> bool:
            self._keeper.start_traps(*self._argv)
            return self._keeper.traps_pid() not in (0, pid)

        eventually(is_new, "there is another traps")
        wait_until_whole(self._hosts, self._host)

    def close(self) -> None:
        self._keeper.channel.close()


@pytest.fixture(scope="module")
def crashers(hosts: TwoHosts) -> Iterator[dict[str, Crasher]]:
    found = {host: Crasher(hosts, host) for host in ("a", "b")}
    for each in found.values():
        each.begin()
    yield found
    for each in found.values():
        each.close()


@pytest.fixture(scope="module")
def running(crashers: dict[str, Crasher], client: Workload, server: Workload) -> Running:
    """A client that makes one exchange for each line of input."""
    assert server.probe(enduring.serve, PORT, 1).result() == "started"
    running = client.probe(enduring.exchange_by_line, server.address4, PORT, client.address4)
    for kind in ("blocking", "polled", "listen"):
        assert exchange(running, kind)["failed"] == {}
    return running


def exchange(running: Running, kind: str) -> dict[str, Any]:
    running.tell(kind)
    seen: dict[str, Any] = running.result()
    assert seen["wrong"] == []
    return seen


def crash_during(crasher: Crasher, running: Running, case: Case) -> Any:
    kind, point, when, count = case
    pid = crasher.arm(point, when, count)
    running.tell(kind)
    crasher.wait_for_crash(pid)
    return running.result()


@points(CLIENT_POINTS)
def test_caller_gets_its_result(crashers: dict[str, Crasher], running: Running, case: Case) -> None:
    seen = crash_during(crashers["a"], running, case)
    assert (seen["failed"], seen["wrong"]) == ({}, [])
    assert seen["done"]


@pytest.fixture
def without_fast_open(hosts: TwoHosts) -> Iterator[None]:
    """On host a the record follows the handshake."""
    setting = "net.ipv4.tcp_fastopen"
    before = hosts.on_host("a", "sysctl", "-n", setting).strip()
    hosts.on_host("a", "sysctl", "-qw", f"{setting}=0")
    yield
    hosts.on_host("a", "sysctl", "-qw", f"{setting}={before}")


@pytest.mark.usefixtures("without_fast_open")
@points(LATE_RECORD_POINTS)
def test_caller_gets_its_result_without_fast_open(
    crashers: dict[str, Crasher], running: Running, case: Case
) -> None:
    seen = crash_during(crashers["a"], running, case)
    assert (seen["failed"], seen["wrong"]) == ({}, [])
    assert seen["done"]


@pytest.mark.needs_program("nft")
def test_bound_port_is_kept_when_the_successor_goes_back_to_the_overlay(
    hosts: TwoHosts, crashers: dict[str, Crasher], running: Running
) -> None:
    host_ports = 'iifname "eth0" tcp dport 20000-29999'
    netns = hosts.host("b").netns
    with contextlib.ExitStack() as dropping:
        dropping.enter_context(filtering(netns, f"{host_ports} drop"))
        crasher = crashers["a"]
        pid = crasher.arm("replace_fd", "after", 1)
        running.tell("bound")
        crasher.wait_for_crash(pid)
        with filtering(netns, f"{host_ports} reject with tcp reset"):
            # The SYN that is sent again is refused.
            dropping.close()
            seen = running.result()
    assert (seen["failed"], seen["wrong"]) == ({}, [])
    assert seen["done"]


@points(SERVER_POINTS)
def test_accepted_connection_reaches_its_server(
    crashers: dict[str, Crasher], running: Running, case: Case
) -> None:
    seen = crash_during(crashers["b"], running, case)
    assert (seen["failed"], seen["wrong"]) == ({}, [])
    assert seen["done"]


@points(IN_HAND_POINTS)
def test_connection_in_hand_is_lost_at_most_and_its_client_told(
    crashers: dict[str, Crasher], running: Running, case: Case
) -> None:
    seen = crash_during(crashers["b"], running, case)
    # It was reset. A client that is still held in its connect is not told: slimd connects again.
    assert sum(seen["failed"].values()) <= 1
    assert set(seen["failed"]) <= {"blocking greeting ECONNRESET", "blocking greeting closed"}
    assert exchange(running, "blocking")["failed"] == {}
