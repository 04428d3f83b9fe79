"""slimd's processes come and go; connections, listeners and programs stay."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import time
from typing import TYPE_CHECKING, Any

import pytest
from lab.programs import Postgres, Redis

from slim.broker.errors import ControlError
from support.crashes import crash, is_running, kill, wait_until_whole
from support.firewall import filtering
from support.measuring import namespaces_held
from support.polling import eventually
from support.probes import gaps, listening, peers, sessions, visiting
from support.programs import start_nginx
from support.two_hosts import BIN, Running, TwoHosts, Workload

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lab.processes import Process

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_netns]

PORT = 8000
NGINX_PORT = 8080
MANY_LISTENERS = 600
"""More than an ordinary send buffer of a link holds in messages."""
TELL = "select json_build_object('told', host(inet_client_addr()), 'pid', pg_backend_pid());"


@pytest.fixture(scope="module")
def greeting_server(server: Workload) -> Workload:
    """Its main thread is always in a held accept."""
    server.probe(peers.greet_server, "0.0.0.0", PORT).result()
    return server


@pytest.fixture(autouse=True)
def whole(request: pytest.FixtureRequest) -> None:
    """Traps that was killed often starts later each time; no test is to pay for another's."""
    if "hosts" in request.fixturenames:
        hosts: TwoHosts = request.getfixturevalue("hosts")
        for host in ("a", "b"):
            wait_until_whole(hosts, host)


CRASHES = pytest.mark.parametrize(
    "roles", [("control",), ("traps",), ("control", "traps")], ids=" and ".join
)


@CRASHES
@pytest.mark.needs_program(
    "nginx", "redis-server", "postgres", "initdb", "psql", "pg_isready", "pgbench"
)
def test_sessions_of_programs_survive_a_crash(
    hosts: TwoHosts, client: Workload, programs: dict[str, Running], roles: tuple[str, ...]
) -> None:
    before = {name: exchange(name, running) for name, running in programs.items()}
    crash(hosts, roles)
    for name, running in programs.items():
        assert exchange(name, running) == before[name]
    listed = {row.overlay_local: row for row in hosts.rows("a", "out")}
    for name in ("nginx", "redis"):
        row = listed[before[name]["name"]]
        assert (row.path, row.overlay_peer) == ("fast", before[name]["peer"])


def exchange(name: str, running: Running) -> dict[str, Any]:
    running.tell(TELL if name == "postgres" else "next")
    seen: dict[str, Any] = running.result()
    if name != "postgres":
        assert seen["told"] == seen["name"]
    return seen


@pytest.fixture(scope="module")
def programs(hosts: TwoHosts, client: Workload, server: Workload) -> Iterator[dict[str, Running]]:
    """Open sessions from host a with servers on host b."""
    with contextlib.ExitStack() as stack:
        place = server.place()
        nginx = start_nginx(place, hosts.directory("nginx"), NGINX_PORT)
        stack.callback(nginx.stop)
        redis = Redis().start(place, hosts.directory("redis"), None)
        stack.callback(redis.stop)
        postgres = Postgres().start(place, hosts.directory("postgres"), None)
        stack.callback(postgres.stop)
        where = ("-h", server.address4, "-p", str(postgres.endpoint.port), "-U", "postgres")
        found = {
            "nginx": client.probe(sessions.http_session, server.address4, NGINX_PORT),
            "redis": client.probe(sessions.redis_session, server.address4, redis.endpoint.port),
            "postgres": client.start("psql", *where, "-AtqX", "postgres"),
        }
        for name in ("nginx", "redis"):
            found[name].result()
        yield found
        for running in found.values():
            running.stop()


@CRASHES
def test_new_connections_are_made_and_accepted_after_a_crash(
    hosts: TwoHosts, client: Workload, greeting_server: Workload, roles: tuple[str, ...]
) -> None:
    crash(hosts, roles)

    def is_fast() -> bool:
        running = client.probe(peers.stay, greeting_server.address4, PORT)
        seen = running.result()
        assert seen["peer"] == seen["accepted"] == seen["client_name"]
        row = hosts.row("a", seen["client_name"])
        running.stop()
        return row.path == "fast"

    assert is_fast() or eventually(is_fast, "connections are fast again", 10)
    stranger = hosts.plain("b").call(peers.visit, greeting_server.address4, PORT)
    assert stranger["peer"] == stranger["client_name"]


def test_names_are_right_when_only_the_successor_knows_the_connection(
    hosts: TwoHosts, client: Workload, greeting_server: Workload
) -> None:
    running = client.probe(peers.stay, greeting_server.address4, PORT)
    seen = running.result()
    crash(hosts, ("control", "traps"))
    running.tell("echo")
    assert running.result() == 1000
    assert running.result() == {name: seen[name] for name in ("client_name", "client_peer")}
    running.stop()


def test_epoll_sets_are_known_to_the_successor(
    hosts: TwoHosts, client: Workload, greeting_server: Workload
) -> None:
    """A set made before the crash; the socket is registered in it before it connects, after."""
    running = client.probe(visiting.visit_by_old_epoll, greeting_server.address4, PORT)
    assert running.result() == "made"
    crash(hosts, ("traps",))
    running.tell("connect")
    seen = running.result()
    assert seen["peer"] == seen["client_name"]
    assert hosts.row("a", seen["client_name"]).path == "fast"


def test_calls_held_by_a_killed_traps_are_answered_by_its_successor(
    hosts: TwoHosts, client: Workload, greeting_server: Workload
) -> None:
    """Eight threads connect all the time, while traps is killed at both ends, twice."""
    threads, kills = 8, 2
    load = client.probe(visiting.patient_visits, greeting_server.address4, PORT, threads)
    assert load.result() == "started"
    for _ in range(kills):
        for host in ("a", "b"):
            wait_until_whole(hosts, host)
            kill(hosts, host, "traps")
    for host in ("a", "b"):
        wait_until_whole(hosts, host)
    client.call(peers.visit, greeting_server.address4, PORT)
    load.tell("stop")
    seen = load.result()
    assert seen["wrong"] == []
    # Killed inside an accept, traps loses the connection in hand. Nothing else is to be seen:
    # no ENOSYS, no thread whose call never ended.
    assert set(seen["errors"]) <= {"ECONNRESET", "closed"}, seen["errors"]
    assert sum(seen["errors"].values()) <= kills
    assert len(seen["done"]) == threads


def test_traps_that_is_stopped_again_and_again_fails_no_call(
    hosts: TwoHosts, client: Workload, greeting_server: Workload
) -> None:
    """A stop can come at any instruction, also while an fd is on its way into the program."""
    load = client.probe(visiting.patient_visits, greeting_server.address4, PORT, 8)
    assert load.result() == "started"
    chance = random.Random(2019)
    pids = [hosts.pid(host, "traps") for host in ("a", "b")]
    for _ in range(400):
        pid = chance.choice(pids)
        os.kill(pid, signal.SIGSTOP)
        time.sleep(chance.uniform(0, 0.001))
        os.kill(pid, signal.SIGCONT)
        time.sleep(chance.uniform(0, 0.004))
    load.tell("stop")
    seen = load.result()
    assert (seen["wrong"], seen["errors"]) == ([], {})
    assert len(seen["done"]) == 8


def test_program_that_starts_while_traps_is_away_waits_for_the_successor(
    hosts: TwoHosts, client: Workload, greeting_server: Workload
) -> None:
    kill(hosts, "a", "traps")
    seen = client.call(peers.visit, greeting_server.address4, PORT)
    assert seen["peer"] == seen["client_name"]


@pytest.mark.needs_program("nft")
def test_connect_that_was_held_when_traps_was_killed_ends_well(
    hosts: TwoHosts, client: Workload, greeting_server: Workload
) -> None:
    client.call(peers.visit, greeting_server.address4, PORT)
    drop = 'iifname "eth0" tcp dport 20000-29999 drop'
    with filtering(hosts.host("b").netns, drop):
        running = client.probe(visiting.announced_visit, greeting_server.address4, PORT)
        assert running.result() == "connecting"
        eventually(
            lambda: any(row.state == "syn-sent" for row in hosts.rows("a", "out")),
            "the handshake has begun",
        )
        kill(hosts, "a", "traps")
    seen = running.result()
    assert seen["peer"] == seen["client_name"]


def test_sigterm_ends_slimd_within_two_seconds_and_leaves_the_keeper(
    hosts: TwoHosts, client: Workload, greeting_server: Workload
) -> None:
    running = client.probe(peers.stay, greeting_server.address4, PORT)
    seen = running.result()
    wait_until_whole(hosts, "a")
    pids = {role: hosts.pid("a", role) for role in ("control", "traps", "keeper")}
    os.kill(pids["control"], signal.SIGTERM)
    started = time.monotonic()
    eventually(lambda: not is_running(pids["control"]), "control has ended", 2)
    eventually(lambda: not is_running(pids["traps"]), "traps has ended", 2)
    assert time.monotonic() - started < 2
    assert is_running(pids["keeper"])
    running.tell("echo")
    assert running.result() == 1000
    # The names that it asks for now wait for the successor, as does a program that starts now.
    hosts.start_slimd("a")
    assert running.result() == {name: seen[name] for name in ("client_name", "client_peer")}
    assert hosts.pid("a", "keeper") == pids["keeper"]
    running.stop()


@contextlib.contextmanager
def beside_a_hung_keeper(hosts: TwoHosts) -> Iterator[Process]:
    """A slimd on host b whose keeper does not answer; afterwards another runs with that keeper."""
    wait_until_whole(hosts, "b")
    os.kill(hosts.pid("b", "control"), signal.SIGTERM)
    slimd = hosts.start_slimd("b")
    wait_until_whole(hosts, "b")
    keeper = hosts.pid("b", "keeper")
    os.kill(keeper, signal.SIGSTOP)
    try:
        yield slimd
    finally:
        os.kill(keeper, signal.SIGCONT)
        slimd.stop()
        hosts.start_slimd("b")
        wait_until_whole(hosts, "b")
    assert hosts.pid("b", "keeper") == keeper


def test_sigterm_ends_slimd_within_two_seconds_beside_a_keeper_that_hangs(hosts: TwoHosts) -> None:
    with beside_a_hung_keeper(hosts) as slimd:
        os.kill(slimd.pid, signal.SIGTERM)
        assert slimd.wait(2) == 0
    assert "the keeper does not answer" in slimd.log.read_text()


def test_second_sigterm_ends_slimd_at_once(hosts: TwoHosts) -> None:
    with beside_a_hung_keeper(hosts) as slimd:
        os.kill(slimd.pid, signal.SIGTERM)
        eventually(lambda: not hosts.answers("b"), "it takes no administrators any more", 1)
        os.kill(slimd.pid, signal.SIGTERM)
        # The latter while Python itself ends.
        assert slimd.wait(1) in (128 + signal.SIGTERM, -signal.SIGTERM)


def test_second_slimd_on_the_same_directory_is_refused_and_harms_nothing(
    hosts: TwoHosts, client: Workload, greeting_server: Workload
) -> None:
    before = {role: hosts.pid("a", role) for role in ("control", "traps", "keeper")}
    argv = [*hosts.machines["a"].prefix, str(BIN / "slimd"), "--config", "/etc/slim/slimd.toml"]
    second = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
    assert second.returncode == ControlError.exit_code
    assert f"another slimd (pid {before['control']}) runs in /run/slim" in second.stderr
    assert {role: hosts.pid("a", role) for role in before} == before
    client.call(peers.visit, greeting_server.address4, PORT)


def test_hundreds_of_listeners_are_known_again_after_a_crash_and_end_together(
    hosts: TwoHosts, greeting_server: Workload
) -> None:
    crowd = hosts.workload("a", "crowd")
    others = hosts.status("a").containers
    running = crowd.probe(listening.listen_on_many, 3000, MANY_LISTENERS)
    assert running.result() == MANY_LISTENERS

    def listeners() -> int:
        return hosts.status("a").listeners

    eventually(lambda: listeners() == MANY_LISTENERS, "control knows all listeners")
    crash(hosts, ("traps",))
    eventually(lambda: listeners() == MANY_LISTENERS, "control knows them all again")
    kill(hosts, "a", "traps")
    running.stop()
    wait_until_whole(hosts, "a")
    successor = hosts.pid("a", "traps")
    eventually(lambda: listeners() == 0, "every listener has ended")
    eventually(lambda: hosts.status("a").containers == others, "the container has ended", 20)
    assert hosts.pid("a", "traps") == successor


def test_container_that_ends_while_control_is_away_leaves_nothing_in_traps(
    hosts: TwoHosts,
) -> None:
    passing = hosts.workload("a", "passing")
    others = hosts.status("a").workloads
    running = passing.start("sleep", "60")
    eventually(lambda: hosts.status("a").workloads == others + 1, "it is supervised")
    traps = hosts.pid("a", "traps")
    held = namespaces_held(traps)
    kill(hosts, "a", "control")
    running.stop()
    hosts.start_slimd("a")
    assert hosts.pid("a", "traps") == traps
    eventually(lambda: namespaces_held(traps) == held - 1, "traps has closed its namespace")
    assert hosts.status("a").workloads == others


def test_release_lets_programs_go_and_ends_with_the_last() -> None:
    with TwoHosts() as hosts:
        client = hosts.workload("a", "client").under("--fail-open")
        server = hosts.workload("b", "server")
        server.probe(peers.greet_server, "0.0.0.0", PORT).result()
        running = client.probe(peers.stay, server.address4, PORT)
        running.result()
        trying = client.probe(gaps.try_everything, server.address4, PORT)
        assert trying.result() == "ready"
        pids = [hosts.pid("a", role) for role in ("control", "traps")]
        keeper = hosts.pid("a", "keeper")
        hosts.slimds["a"].slimctl("stop", "--release")
        eventually(lambda: not any(map(is_running, pids)), "control and traps have ended")
        running.tell("echo")
        assert running.result() == 1000
        # Long before the gap limit.
        trying.tell("over the overlay")
        assert trying.result()["connect"].startswith("10.")
        assert is_running(keeper)
        running.stop()
        trying.stop()
        eventually(lambda: not is_running(keeper), "the keeper has ended, too")
