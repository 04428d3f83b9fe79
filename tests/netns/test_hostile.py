"""Programs and peers that mean harm: slimd stays up, serves the others, and counts what it saw.

The portable guard is no boundary for a container; slimd itself must stand all the same.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from typing import TYPE_CHECKING

import pytest
from lab.commands import run

from slim.broker.attempts import MAX_HELD
from support.firewall import filtering
from support.polling import eventually
from support.probes import frames, peers
from support.programs import build
from support.two_hosts import BIN

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.two_hosts import Running, TwoHosts, Workload

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_netns, pytest.mark.needs_program("cc")]

PORT = 8000
LAST_ERRNO = 133
"""EHWPOISON. What comes after 511 (ERESTARTSYS and others) is the kernel's own business."""
PEERS_PORT = 7946


@pytest.fixture(scope="module")
def directory(hosts: TwoHosts) -> Path:
    return hosts.directory("hostile")


@pytest.fixture(scope="module")
def wild(directory: Path) -> str:
    return str(build(directory, "wild"))


@pytest.fixture(scope="module")
def races(directory: Path) -> str:
    return str(build(directory, "races"))


@pytest.fixture(scope="module")
def crowd(directory: Path) -> str:
    return str(build(directory, "crowd"))


@pytest.fixture(scope="module")
def other(hosts: TwoHosts, server: Workload) -> Workload:
    """A workload on the hostile one's host that wants to be served."""
    server.probe(peers.greet_server, "0.0.0.0", PORT).result()
    return hosts.workload("a", "other")


@pytest.fixture(autouse=True)
def standing(hosts: TwoHosts) -> Iterator[None]:
    """The same processes before and after, and no call that slimd had no answer for."""
    before = {role: hosts.pid("a", role) for role in ("control", "traps", "keeper")}
    yield
    assert {role: hosts.pid("a", role) for role in before} == before
    counters = hosts.status("a").counters
    assert "traps_unanswered" not in counters
    assert "internal_errors" not in counters


@contextlib.contextmanager
def serving(hosts: TwoHosts, other: Workload, server: Workload) -> Iterator[None]:
    """Others are served on the fast path before, while and after."""

    def visit() -> None:
        running = other.probe(peers.stay, server.address4, PORT)
        seen = running.result()
        assert seen["peer"] == seen["client_name"]
        assert hosts.row("a", seen["client_name"]).path == "fast"
        running.stop()

    visit()
    yield
    visit()


def counted(hosts: TwoHosts, name: str) -> int:
    return hosts.status("a").counters.get(name, 0)


def errnos(running: Running) -> dict[int, int]:
    """What the program says at its end: how often which errno was seen."""
    seen = {int(code): count for code, count in running.result().items()}
    assert max(seen) <= LAST_ERRNO, seen
    return seen


def test_wild_pointers_lengths_and_numbers_get_the_errnos_of_the_kernel(
    hosts: TwoHosts, client: Workload, other: Workload, server: Workload, wild: str
) -> None:
    plain = hosts.plain("a")
    native = plain.run(wild, plain.address4)
    assert native.endswith("done\n")
    before = counted(hosts, "traps_unreadable")
    with serving(hosts, other, server):
        assert client.run(wild, client.address4).splitlines() == native.splitlines()
    eventually(lambda: counted(hosts, "traps_unreadable") > before + 100, "they are counted")


def test_addresses_and_files_that_change_under_the_calls(
    hosts: TwoHosts, client: Workload, other: Workload, server: Workload, races: str
) -> None:
    running = client.start(races, server.address4, str(PORT), "4")
    with serving(hosts, other, server):
        seen = errnos(running)
    # Some went through, others met an address or a file that was not meant.
    assert seen[0] > 0
    assert len(seen) > 3


@pytest.mark.parametrize("threads", [2000])
def test_thousands_of_threads_held_in_accept(
    hosts: TwoHosts, client: Workload, other: Workload, server: Workload, crowd: str, threads: int
) -> None:
    running = client.start(crowd, "accept", client.address4, "9000", str(threads))
    assert running.result() == threads
    with serving(hosts, other, server):
        running.tell("")
    assert errnos(running) == {0: threads}


@pytest.mark.parametrize("threads", [500])
def test_hundreds_of_threads_that_connect_all_the_time(
    hosts: TwoHosts, client: Workload, other: Workload, server: Workload, crowd: str, threads: int
) -> None:
    running = client.start(crowd, "connect", server.address4, str(PORT), str(threads))
    assert running.result() == threads
    with serving(hosts, other, server):
        pass
    running.tell("")
    assert errnos(running)[0] >= threads


@pytest.mark.needs_program("nft")
def test_threads_that_connect_to_where_nobody_answers_do_not_use_up_the_fds_of_slimd(
    hosts: TwoHosts, client: Workload, other: Workload, crowd: str
) -> None:
    near, silent = hosts.workload("a", "near"), hosts.workload("b", "silent")
    for workload in (near, silent):
        workload.probe(peers.greet_server, "0.0.0.0", PORT).result()
    client.call(peers.visit, silent.address4, PORT)
    with filtering(hosts.host("b").netns, 'iifname "eth0" tcp dport 20000-29999 drop'):
        running = client.start(crowd, "connect", silent.address4, str(PORT), str(2 * MAX_HELD))
        assert running.result() == 2 * MAX_HELD
        most = 0

        def fell_back() -> bool:
            nonlocal most
            most = max(most, len(os.listdir(f"/proc/{hosts.pid('a', 'traps')}/fd")))
            return any(row.reason == "too-many-held" for row in hosts.rows("a", "out"))

        eventually(fell_back, "some go over the overlay", 30)
        with serving(hosts, other, near):
            running.stop()
    assert most < MAX_HELD + 200


def test_container_that_is_killed_with_all_its_threads_held_leaves_nothing_behind(
    hosts: TwoHosts, client: Workload, other: Workload, server: Workload, crowd: str
) -> None:
    running = client.start(crowd, "accept", client.address4, "9001", "1000")
    assert running.result() == 1000
    with serving(hosts, other, server):
        running.stop()

    def listeners() -> list[str]:
        return [
            row.overlay_local for row in hosts.rows("a", "listen") if ":9001" in row.overlay_local
        ]

    eventually(lambda: not listeners(), "its listener is gone")


@pytest.mark.parametrize("threads", [1, 40])
def test_signal_of_the_process_ends_held_calls_with_eintr_and_no_errno_of_the_kernels_own(
    client: Workload, crowd: str, threads: int
) -> None:
    seen = []
    for port, place in ((9002, client.plain()), (9003, client)):
        running = place.start(crowd, "signal", place.address4, str(port), str(threads))
        assert running.result() == threads
        seen.append(errnos(running))
    native, brokered = seen
    assert set(native) == set(brokered) == {0, errno.EINTR}
    assert brokered[0] == threads


def test_peer_that_breaks_the_protocol_is_dropped_each_time_and_others_are_served(
    hosts: TwoHosts, other: Workload, server: Workload, directory: Path
) -> None:
    networks = ("--network", "10.77.3.0/24")
    run(
        str(BIN / "slimctl"),
        "pki",
        "issue",
        str(hosts.authority),
        "c",
        *networks,
        "--out",
        str(directory),
    )
    shutil.copy(hosts.authority / "authority.crt", directory)
    own, target = str(hosts.host("b").address4), str(hosts.host("a").address4)
    before = counted(hosts, "protocol_violations") + counted(hosts, "inbound_failed")
    with serving(hosts, other, server):
        where = ("c", str(directory), own, target, PEERS_PORT)
        seen = hosts.probe_on_host("b", frames.misbehave, *where).result()
    assert seen["ended"] == seen["violations"]
    after = counted(hosts, "protocol_violations") + counted(hosts, "inbound_failed")
    assert after - before == seen["violations"]


def test_bytes_that_are_no_tls_are_counted_and_others_are_served(
    hosts: TwoHosts, other: Workload, server: Workload
) -> None:
    before = counted(hosts, "inbound_failed")
    with serving(hosts, other, server):
        where = (str(hosts.host("a").address4), PEERS_PORT, 200)
        assert hosts.probe_on_host("b", frames.babble, *where).result() == {"ended": 200}
    eventually(lambda: counted(hosts, "inbound_failed") - before == 200, "they are counted")
