"""Threaded programs that are stopped, frozen or traced while their calls are held.

Each test runs natively and brokered: what waits goes on as if nothing had happened.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from support.compatibility import Cases
from support.polling import eventually
from support.probes import held, peers
from support.silence import silence

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from support.pairs import Pair
    from support.two_hosts import TwoHosts

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_netns]
COMPATIBILITY = Cases(heading="Held calls")


def threads_of(pid: int) -> list[int]:
    return [int(name) for name in os.listdir(f"/proc/{pid}/task")]


def state_of(tid: int) -> str:
    return Path(f"/proc/{tid}/stat").read_text().rpartition(")")[2].split()[0]


def wait_until_all_sleep(pid: int, number: int) -> None:
    def all_sleep() -> bool:
        threads = threads_of(pid)
        return len(threads) >= number and all(state_of(tid) == "S" for tid in threads)

    eventually(all_sleep, f"{number} threads of process {pid} sleep")


# --- interruptions: each ends with the program running again --------------------------------------


def stop_and_continue(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)
    eventually(lambda: all(state_of(tid) == "T" for tid in threads_of(pid)), "all threads stopped")
    os.kill(pid, signal.SIGCONT)


def trace(pid: int) -> None:
    """A debugger attaches, looks at every thread, and leaves."""
    command = ["gdb", "--batch", "--nx", "-ex", "info threads", "-ex", "detach", "-p", str(pid)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Thread") + done.stdout.count("LWP") >= held.THREADS, done.stdout


def freeze_and_thaw(pid: int) -> None:
    """By the freezer of cgroup v2 (cgroup.freeze of the kernel's cgroup-v2 document)."""
    with cgroup() as directory:
        (directory / "cgroup.procs").write_text(str(pid))
        (directory / "cgroup.freeze").write_text("1")
        events = directory / "cgroup.events"
        try:
            eventually(lambda: "frozen 1" in events.read_text(), "the program is frozen")
        finally:
            (directory / "cgroup.freeze").write_text("0")
        eventually(lambda: "frozen 0" in events.read_text(), "the program is thawed")


def cgroup_mount() -> Path | None:
    """Where cgroup v2 is mounted, alone or beside version 1."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, directory, kind, *_ = line.split()
        if kind == "cgroup2":
            return Path(directory)
    return None


@contextlib.contextmanager
def cgroup() -> Iterator[Path]:
    """A new cgroup; what is in it at the end goes back to the root."""
    mount = cgroup_mount()
    assert mount is not None
    directory = mount / f"slimtest-{os.getpid()}"
    directory.mkdir()
    try:
        yield directory
    finally:
        for pid in (directory / "cgroup.procs").read_text().split():
            (mount / "cgroup.procs").write_text(pid)
        directory.rmdir()


INTERRUPTIONS = pytest.mark.parametrize(
    "interrupt",
    [
        stop_and_continue,
        pytest.param(trace, marks=pytest.mark.needs_program("gdb")),
        pytest.param(
            freeze_and_thaw,
            marks=pytest.mark.skipif(cgroup_mount() is None, reason="no cgroup v2 is mounted"),
        ),
    ],
)
IPV4 = pytest.mark.parametrize("version", [4])


@INTERRUPTIONS
@IPV4
def test_held_accepts_go_on(pair: Pair, port: int, interrupt: Callable[[int], None]) -> None:
    running = pair.serve(held.accept_in_threads, port)
    assert running.result() == "accepting"
    for _ in range(3):
        wait_until_all_sleep(running.pid, held.THREADS + 1)
        interrupt(running.pid)
    seen = [pair.client.call(peers.visit, pair.address, port) for _ in range(6)]
    assert all(each["peer"] == each["accepted"] == each["client_name"] for each in seen)
    assert {each["pid"] for each in seen} == {running.pid}


@pytest.mark.needs_program("nft")
@INTERRUPTIONS
@IPV4
def test_held_connects_go_on(
    hosts: TwoHosts, pair: Pair, port: int, interrupt: Callable[[int], None]
) -> None:
    """Handshakes get no answer: the kernel sends them again, after a second."""
    with silence(hosts, pair, port) as silent:
        running = silent.client.probe(held.connect_in_threads, silent.address, silent.port)
        assert running.result() == "connecting"
        wait_until_all_sleep(running.pid, held.THREADS + 1)
        interrupt(running.pid)
    seen: list[Any] = running.result()
    assert [each["peer"] for each in seen] == [each["client_name"] for each in seen]
    assert [each["path"] for each in seen] == [pair.path] * held.THREADS
