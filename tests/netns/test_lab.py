"""The lab, the benchmark and the demonstration: they work, and nothing of them stays."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from bench import crr, rr
from bench.rounds import Rounds
from lab.commands import run
from lab.hosts import Lab
from lab.machines import Machine
from lab.places import Contender
from lab.programs import Memcached, Nginx, Postgres, Redis
from lab.testbed import Testbed

from slim.broker.errors import SlimError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lab.programs import Program

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [
    pytest.mark.needs_root,
    pytest.mark.needs_netns,
    pytest.mark.needs_program("ip", "nsenter", "unshare", "setpriv", "taskset"),
]
NETWORKS = (Contender.HOST, Contender.OVERLAY)


def what_is_left(pid: int) -> list[str]:
    """Namespaces and directories of the labs of a process."""
    namespaces = [line.split()[0] for line in run("ip", "netns", "list").splitlines()]
    directories = [path.name for path in Path(tempfile.gettempdir()).iterdir()]
    return [name for name in namespaces + directories if name.startswith(f"slim-{pid}-")]


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as made:
        yield made
    assert what_is_left(os.getpid()) == []


def test_leaving_ends_processes_that_outlived_their_owner() -> None:
    with Lab() as lab:
        host = lab.hosts["a"]
        orphan = subprocess.Popen([*host.place().prefix, "sleep", "600"])
        inside = f"/run/netns/{host.netns}"
        deadline = time.monotonic() + 5
        while not Path(f"/proc/{orphan.pid}/ns/net").samefile(inside):
            assert time.monotonic() < deadline, "it never entered the namespace"
    assert orphan.wait(timeout=5) == -signal.SIGKILL
    assert what_is_left(os.getpid()) == []


def test_failure_while_it_is_built_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(lab: Lab) -> None:
        raise SlimError("no bridge")

    monkeypatch.setattr(Lab, "_make_overlay", fail)
    with pytest.raises(SlimError, match="no bridge"), Lab():
        pass
    assert what_is_left(os.getpid()) == []


@pytest.mark.parametrize("version", [4, 6])
def test_containers_reach_each_other_over_the_overlay(lab: Lab, version: int) -> None:
    client, server = (lab.add_container(host) for host in lab.hosts.values())
    address = server.address4 if version == 4 else server.address6
    listener = (
        "import socket, sys; s = socket.create_server((sys.argv[1], 7000),"
        " family=socket.AF_INET6 if ':' in sys.argv[1] else socket.AF_INET);"
        " print('ready', flush=True); c, peer = s.accept(); print(peer[0])"
    )
    python = sys.executable
    with subprocess.Popen(
        [*server.place().prefix, python, "-c", listener, str(address)],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        connect = "import socket, sys; socket.create_connection((sys.argv[1], 7000), 10)"
        run(*client.place().prefix, python, "-c", connect, str(address))
        wanted = client.address4 if version == 4 else client.address6
        assert process.stdout.readline().strip() == str(wanted)


def test_host_has_files_and_namespaces_of_its_own(lab: Lab) -> None:
    first, second = lab.hosts.values()
    mine, others = lab.add_container(first), lab.add_container(second)
    with Machine(first) as machine:
        assert run(*machine.prefix, "ls", "/run/netns").split() == [mine.netns]
        added = lab.add_container(first)
        machine.show(added)
        for container in (mine, added):
            shown = run(
                *machine.prefix, "nsenter", f"--net=/run/netns/{container.netns}", "ip", "a"
            )
            assert str(container.address4) in shown
            assert str(others.address4) not in shown
        run(*machine.prefix, "touch", "/etc/only-here", "/run/only-here")
    assert not Path("/etc/only-here").exists()
    assert not Path("/run/only-here").exists()


@pytest.mark.needs_program(
    "nginx", "wrk", "memcached", "memcaslap", "redis-server", "redis-benchmark", "pgbench"
)
@pytest.mark.parametrize("program", [Nginx, Memcached, Redis, Postgres])
def test_program_serves_its_load_over_the_overlay(lab: Lab, program: type[Program]) -> None:
    client, server = (lab.add_container(host).place() for host in lab.hosts.values())
    directory = lab.directory / "server"
    directory.mkdir(mode=0o755)
    started = program()
    running = started.start(server, directory, None)
    try:
        load = started.load(running.endpoint, 1, None)
        assert load.parse(run(*client.command(load.argv))).rate > 100
    finally:
        running.stop()
    assert running.process.status() is not None


@pytest.mark.needs_program("cc")
def test_round_measures_every_contender_there_and_back() -> None:
    with Testbed(NETWORKS) as bed, Rounds(bed, rr.SCENARIO, seconds=1, passes=2) as rounds:
        assert list(rounds.warm_up()) == [*NETWORKS]
        first = [contender for contender, _ in rounds.run_round()]
        second = [contender for contender, _ in rounds.run_round()]
    there, back = [*NETWORKS], [*reversed(NETWORKS)]
    assert first == there + back
    assert second == back + there
    for contender in NETWORKS:
        for sample in rounds.results.samples[contender]:
            assert sample.rate > 100
            assert sample.cpu.parts["server"] > 0
            assert sample.cpu.parts["load"] > 0
            # Both ends on one core cannot use more than that.
            assert sample.cpu.processes < 1.2
    assert what_is_left(os.getpid()) == []


@pytest.mark.needs_program("cc")
def test_contender_whose_server_ends_is_dropped_with_its_reason() -> None:
    with Testbed(NETWORKS) as bed, Rounds(bed, rr.SCENARIO, seconds=1) as rounds:
        rounds._servers[Contender.OVERLAY].process.stop(signal.SIGKILL)
        samples = dict(rounds.run_round())
    assert list(samples) == [Contender.HOST]
    assert "rr in" in rounds.results.absent[Contender.OVERLAY]
    assert "ended under load" in rounds.results.absent[Contender.OVERLAY]


@pytest.mark.needs_program("cc")
def test_slim_takes_part_and_proves_the_fast_path() -> None:
    with Testbed() as bed:
        assert bed.absent == {}
        with Rounds(bed, crr.SCENARIO, seconds=1) as rounds:
            list(rounds.warm_up())
            samples = dict(rounds.run_round())
            assert rounds.results.absent == {}
    assert list(samples) == [*Contender]
    assert rounds.results.proof is not None
    assert rounds.results.proof.fast == 1
    # Both brokers work for every connection that is made.
    parts = samples[Contender.SLIM].cpu.parts
    assert parts["slimd a traps"] > 0
    assert parts["slimd b traps"] > 0
    assert what_is_left(os.getpid()) == []


def test_slim_that_cannot_start_is_absent_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    # A port of the range for listeners, which slimd refuses.
    monkeypatch.setattr("lab.slimd.PEERS_PORT", 20_000)
    with Testbed((Contender.SLIM,)) as bed:
        assert bed.sites == {}
        assert "[peers] listen" in bed.absent[Contender.SLIM]
    assert what_is_left(os.getpid()) == []


@contextlib.contextmanager
def start_demo(*words: str) -> Iterator[subprocess.Popen[str]]:
    """The demonstration; if it still runs at the end it is asked to end, so that it cleans up."""
    with subprocess.Popen(
        [sys.executable, "-m", "demo.demo", *words],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT / "contrib")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as demo:
        try:
            yield demo
        finally:
            demo.terminate()


@pytest.mark.needs_program("redis-server", "redis-benchmark")
def test_demonstration_shows_ratios_and_the_fast_path() -> None:
    with start_demo("--program", "redis", "--rounds", "1", "--seconds", "1") as demo:
        output, _ = demo.communicate(timeout=100)
    assert demo.returncode == 0, output
    assert "connections fast" in output
    assert "slimctl connections, host b" in output
    assert what_is_left(demo.pid) == []


@pytest.mark.needs_program("redis-server", "redis-benchmark")
@pytest.mark.parametrize(
    ("moment", "number"),
    [
        ("building", signal.SIGINT),
        ("warming up slim", signal.SIGTERM),
        ("Redis, GET, round 1", signal.SIGINT),
    ],
)
def test_interrupted_demonstration_leaves_nothing(number: signal.Signals, moment: str) -> None:
    with start_demo("--program", "redis", "--rounds", "5") as demo:
        assert demo.stdout is not None
        seen = ""
        while moment not in seen:
            line = demo.stdout.readline()
            assert line, f"it ended before {moment!r}: {seen}"
            seen += line
        demo.send_signal(number)
        output, _ = demo.communicate(timeout=60)
    assert demo.returncode == 130, output
    assert "interrupted" in output
    assert what_is_left(demo.pid) == []
