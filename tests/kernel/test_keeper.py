"""The keeper as a real process: what it holds, for whom, and what it survives."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from slim.broker.keeper import BACK_OFF_FIRST_S
from slim.broker.local import messages
from support.keeping import RunningKeeper
from support.polling import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.keeping import KeeperClient

SLEEPER = ("sleep", "600")


@pytest.fixture
def keeper(tmp_path: Path) -> Iterator[RunningKeeper]:
    with RunningKeeper(tmp_path) as running:
        yield running


@pytest.fixture
def client(keeper: RunningKeeper) -> Iterator[KeeperClient]:
    with keeper.client() as connected:
        yield connected


def pipe() -> tuple[int, int]:
    return os.pipe2(os.O_CLOEXEC)


def is_hung_up(reading: int) -> bool:
    """Whether no writing end of the pipe is open any more."""
    os.set_blocking(reading, False)
    try:
        return os.read(reading, 1) == b""
    except BlockingIOError:
        return False


# --- holding ----------------------------------------------------------------------------------


def test_what_was_stored_is_fetched_with_its_fds(client: KeeperClient) -> None:
    reading, writing = pipe()
    client.store("container/1", b"meta", (reading, writing))
    client.store("settings", b"of traps")
    os.close(reading)
    os.close(writing)
    held, traps = client.fetch()
    assert traps == 0
    assert held["settings"] == (b"of traps", [])
    meta, (reading, writing) = held["container/1"]
    assert meta == b"meta"
    os.write(writing, b"still there")
    assert os.read(reading, 100) == b"still there"
    assert client.names("container/") == {"container/1"}
    assert client.names("nothing") == set()
    os.close(reading)
    os.close(writing)


def test_dropping_closes_the_fds(client: KeeperClient) -> None:
    reading, writing = pipe()
    client.store("a", b"", (writing,))
    os.close(writing)
    assert not is_hung_up(reading)
    client.drop("a", "never stored")
    assert is_hung_up(reading)
    assert client.names() == set()
    os.close(reading)


def test_a_replaced_name_closes_its_old_fds(client: KeeperClient) -> None:
    reading, writing = pipe()
    client.store("a", b"old", (writing,))
    os.close(writing)
    client.store("a", b"new")
    assert is_hung_up(reading)
    assert client.fetch()[0] == {"a": (b"new", [])}
    os.close(reading)


def test_without_a_free_fd_a_store_is_refused_and_the_rest_is_held(
    keeper: RunningKeeper, client: KeeperClient
) -> None:
    reading, writing = pipe()
    client.store("a", b"", (writing,))
    before = resource.prlimit(keeper.process.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(keeper.process.pid, resource.RLIMIT_NOFILE, (3, before[1]))
    assert client.refused_store("b", (writing,)).startswith("no fd left")
    resource.prlimit(keeper.process.pid, resource.RLIMIT_NOFILE, before)
    assert client.names() == {"a"}
    client.store("b", b"", (writing,))
    os.close(writing)
    assert not is_hung_up(reading)
    os.close(reading)


def test_what_a_client_stored_outlives_the_client(keeper: RunningKeeper) -> None:
    reading, writing = pipe()
    with keeper.client() as first:
        first.store("a", b"", (writing,))
    os.close(writing)
    with keeper.client() as second:
        assert second.names() == {"a"}
    assert not is_hung_up(reading)
    os.close(reading)


def test_a_client_that_is_killed_leaves_no_fd_behind(
    keeper: RunningKeeper, client: KeeperClient
) -> None:
    assert client.names() == set()
    before = keeper.fds()
    script = (
        "import signal, os, sys\n"
        "from slim.broker.local import messages, seqpacket\n"
        "import msgspec\n"
        "c = seqpacket.Channel(seqpacket.connect(sys.argv[1]), msgspec.msgpack.Decoder())\n"
        "c.send(messages.Store(1, 'a', b''), (0,))\n"
        "c.receive()\n"
        "c.send(messages.Fetch(2, ''))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, keeper.path], stdin=subprocess.DEVNULL)
    assert done.returncode == -signal.SIGKILL
    eventually(lambda: keeper.fds() == before + 1, "only what was stored is open")
    assert client.names() == {"a"}


@pytest.mark.parametrize(
    "datagram",
    [b"\xc1", b"\x93\xa5Store\x01\x02", b"\x92\xa7Unknown\x01", b"x" * 65_536],
    ids=["no msgpack", "wrong types", "unknown tag", "large"],
)
def test_a_client_that_sends_rubbish_is_dropped_with_its_fds(
    keeper: RunningKeeper, datagram: bytes
) -> None:
    reading, writing = pipe()
    with keeper.client() as good:
        good.store("a", b"")
        before = keeper.fds()
        with keeper.client() as bad:
            socket.send_fds(bad.channel.sock, [datagram], [writing])
            os.close(writing)
            with pytest.raises((EOFError, ConnectionResetError)):
                bad.channel.receive()
        assert is_hung_up(reading)
        assert good.names() == {"a"}
        eventually(lambda: keeper.fds() == before, "nothing is left open")
    os.close(reading)


def test_fds_of_a_request_that_takes_none_are_closed(
    keeper: RunningKeeper, client: KeeperClient
) -> None:
    reading, writing = pipe()
    client.channel.send(messages.Fetch(99, ""), (writing,))
    os.close(writing)
    assert client.channel.receive()[0] == messages.HeldEnd(99, keeper.process.pid, 0)
    eventually(lambda: is_hung_up(reading), "the keeper closed it")
    os.close(reading)


@pytest.mark.needs_root
def test_another_uid_is_refused(keeper: RunningKeeper, tmp_path: Path) -> None:
    # Rights on the path alone would keep it out: they are taken away as a barrier here.
    (tmp_path / "keeper.sock").chmod(0o666)
    directory = os.open(tmp_path, os.O_PATH)
    script = (
        "import os, socket, sys\n"
        "os.fchdir(int(sys.argv[1]))\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)\n"
        "s.settimeout(10)\n"
        "s.connect('keeper.sock')\n"
        "try:\n"
        "    print(s.recv(1))\n"
        "except ConnectionResetError:\n"
        "    print(b'')\n"
    )
    tmp_path.chmod(0o755)
    said = subprocess.check_output(
        [sys.executable, "-c", script, str(directory)], pass_fds=[directory], text=True
    )
    os.close(directory)
    assert said == "b''\n"
    with keeper.client() as client:
        assert client.names() == set()


def test_the_socket_is_for_its_owner_only(keeper: RunningKeeper) -> None:
    assert os.stat(keeper.path).st_mode & 0o777 == 0o600


# --- signals and ends -------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_signals_meant_for_slimd_do_not_end_it(
    keeper: RunningKeeper, client: KeeperClient, number: signal.Signals
) -> None:
    client.store("a", b"")
    keeper.signal(number)
    # Answered after the signal was delivered: it is pending before the request is read.
    assert client.names() == {"a"}
    assert keeper.process.poll() is None


def test_release_ends_it_and_its_traps(tmp_path: Path) -> None:
    with RunningKeeper(tmp_path) as keeper:
        reading, writing = pipe()
        with keeper.client() as client:
            client.store("a", b"", (writing,))
            os.close(writing)
            client.start_traps(*SLEEPER)
            traps = eventually(client.traps_pid, "traps runs")
            client.release()
        assert keeper.process.wait(10) == 0
        assert not is_running(traps)
        assert is_hung_up(reading)
        assert not (tmp_path / "keeper.sock").exists()
        os.close(reading)


def test_a_second_keeper_finds_the_place_free_after_a_kill(tmp_path: Path) -> None:
    with RunningKeeper(tmp_path) as first:
        first.process.kill()
        first.process.wait()
        with RunningKeeper(tmp_path) as second, second.client() as client:
            assert client.names() == set()


# --- traps ------------------------------------------------------------------------------------


def is_running(pid: int) -> bool:
    return os.path.exists(f"/proc/{pid}")  # noqa: PTH110 - a path of the kernel's


def another(client: KeeperClient, than: int) -> int:
    """The pid of a traps that is not that one; 0 while there is none."""
    pid = client.traps_pid()
    return pid if pid != than else 0


def test_a_traps_that_is_killed_starts_again(client: KeeperClient) -> None:
    client.start_traps(*SLEEPER)
    first = eventually(client.traps_pid, "traps runs")
    os.kill(first, signal.SIGKILL)
    second = eventually(lambda: another(client, first), "traps runs again")
    assert is_running(second)


def test_starting_twice_runs_one(client: KeeperClient) -> None:
    client.start_traps(*SLEEPER)
    first = eventually(client.traps_pid, "traps runs")
    client.start_traps(*SLEEPER)
    assert client.traps_pid() == first


def test_a_traps_that_cannot_live_is_tried_with_back_off(
    client: KeeperClient, tmp_path: Path
) -> None:
    log = tmp_path / "starts"
    started = time.monotonic()
    client.start_traps("sh", "-c", f"echo >>{log}")

    def starts() -> int:
        return log.stat().st_size if log.exists() else 0

    eventually(lambda: starts() >= 4, "it was started four times")
    # 1 + 2 + 4 first delays lie between four starts.
    assert time.monotonic() - started >= 7 * BACK_OFF_FIRST_S
    assert client.names() == set()


def test_a_traps_whose_program_is_missing_does_not_end_the_keeper(
    keeper: RunningKeeper, client: KeeperClient, tmp_path: Path
) -> None:
    program = tmp_path / "not-there-yet"
    client.store("a", b"")
    client.start_traps(str(program))
    assert client.names() == {"a"}
    # Written elsewhere and moved: a file that is open for writing cannot be executed.
    script = tmp_path / "script"
    script.write_text("#!/bin/sh\nexec sleep 600\n")
    script.chmod(0o755)
    script.rename(program)
    eventually(client.traps_pid, "traps runs as soon as its program is there", timeout_s=10)
    assert client.names() == {"a"}


def test_stopped_traps_stays_stopped(client: KeeperClient) -> None:
    client.start_traps(*SLEEPER)
    pid = eventually(client.traps_pid, "traps runs")
    client.stop_traps()
    assert not is_running(pid)
    assert client.traps_pid() == 0
    client.stop_traps()
    client.start_traps(*SLEEPER)
    assert eventually(client.traps_pid, "traps runs again") != pid


def test_a_traps_that_ignores_sigterm_is_killed(client: KeeperClient, tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    client.start_traps("sh", "-c", f"trap '' TERM; touch {ready}; exec sleep 600")
    eventually(ready.exists, "it ignores SIGTERM")
    pid = client.traps_pid()
    client.stop_traps()
    assert not is_running(pid)


def test_traps_inherits_none_of_the_keepers_files(client: KeeperClient) -> None:
    reading, writing = pipe()
    client.store("a", b"", (writing,))
    os.close(writing)
    client.start_traps(*SLEEPER)
    pid = eventually(client.traps_pid, "traps runs")
    kept = os.readlink(f"/proc/self/fd/{reading}")

    def open_files() -> set[str]:
        found = set()
        for number in os.listdir(f"/proc/{pid}/fd"):
            # It is starting, and opens and closes files of its own.
            with contextlib.suppress(FileNotFoundError):
                found.add(os.readlink(f"/proc/{pid}/fd/{number}"))
        return found

    assert kept not in open_files()
    client.drop("a")
    assert is_hung_up(reading)
    os.close(reading)
