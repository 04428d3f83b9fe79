"""Events of real connections: as many as the programs count, and the same facts as elsewhere."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from slim.broker.cli.events import fetch_past
from slim.broker.events import ConnectionClosed, ConnectionOpened, Event, kind_of
from support.policies import deny, put_in_force
from support.polling import eventually
from support.probes import peers, visits
from support.terminal import slimctl
from support.two_hosts import BIN, Settings, TwoHosts, Workload

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_netns]

PORT = 8000
TIMES = 25
FILE = "/etc/slim/events.jsonl"
JSONLINES = f'\n[plugins.jsonlines]\npath = "{FILE}"\n'


@pytest.fixture(scope="module")
def hosts() -> Iterator[TwoHosts]:
    with TwoHosts(Settings(more=JSONLINES)) as two_hosts:
        yield two_hosts


@pytest.fixture(scope="module")
def greeting(server: Workload) -> Workload:
    server.probe(peers.greet_server, "0.0.0.0", PORT).result()
    return server


def past(hosts: TwoHosts, host: str) -> list[Event]:
    return fetch_past(hosts.run_dir(host))[0]


def opened(hosts: TwoHosts, host: str, names: list[str]) -> list[ConnectionOpened]:
    """The events of connections with those names at the connecting end."""
    is_source = host == "a"
    return [
        event
        for event in past(hosts, host)
        if isinstance(event, ConnectionOpened)
        and (event.overlay_local if is_source else event.overlay_peer) in names
    ]


def ended(hosts: TwoHosts, host: str, cookies: set[int]) -> list[int]:
    return [
        event.cookie
        for event in past(hosts, host)
        if isinstance(event, ConnectionClosed) and event.cookie in cookies
    ]


def test_there_are_as_many_connections_as_the_program_made(
    hosts: TwoHosts, client: Workload, greeting: Workload
) -> None:
    names = client.call(visits.visit_often, greeting.address4, PORT, TIMES)
    for host, direction in (("a", "out"), ("b", "in")):
        eventually(
            lambda host=host: len(opened(hosts, host, names)) >= TIMES,  # type: ignore[misc]
            f"host {host} tells of {TIMES} connections",
        )
        found = opened(hosts, host, names)
        assert len(found) == TIMES
        assert {event.direction for event in found} == {direction}
        assert {event.path for event in found} == {"fast"}
        # The client has ended, and its workload with it.
        assert {event.workload for event in found} == {"client" if host == "a" else "server"}
        assert all(0 < event.setup_us < 10_000_000 for event in found)
        cookies = {event.cookie for event in found}
        assert len(cookies) == TIMES
        eventually(
            lambda host=host, cookies=cookies: (  # type: ignore[misc]
                len(ended(hosts, host, cookies)) >= TIMES
            ),
            "all of them are told to be over",
            10,
        )
        assert sorted(ended(hosts, host, cookies)) == sorted(cookies)


def test_an_event_says_what_the_table_and_the_program_say(
    hosts: TwoHosts, client: Workload, greeting: Workload
) -> None:
    held = client.probe(peers.stay, greeting.address4, PORT)
    name = held.result()["client_name"]
    (event,) = eventually(lambda: opened(hosts, "a", [name]), "the connection is told of")
    row = hosts.row("a", name)
    for field in ("direction", "workload", "overlay_peer", "host_peer", "path", "rule", "cookie"):
        assert getattr(event, field) == getattr(row, field)
    assert event.pid == held.pid
    assert event.peer_host == "b"
    held.stop()


def test_a_policy_that_denies_is_told_of_at_both_ends(
    hosts: TwoHosts, client: Workload, greeting: Workload
) -> None:
    put_in_force(hosts, "b", deny("closed", "client", "server"))
    try:
        refused = client.call(visits.try_often, greeting.address4, PORT, 5)
        assert refused == 5
        found = eventually(
            lambda: [
                event
                for event in past(hosts, "a")
                if isinstance(event, ConnectionOpened) and event.path == "denied"
            ],
            "host a tells of refusals",
        )
        assert len(found) == refused
        assert {event.rule for event in found} == {"rules:closed"}
        kinds = [kind_of(event) for event in past(hosts, "b")]
        assert "source-denied" in kinds
        assert "policy-changed" in kinds
    finally:
        put_in_force(hosts, "b", "")


def test_the_plugin_wrote_what_slimctl_shows(hosts: TwoHosts, client: Workload) -> None:
    shown = [json.loads(line) for line in _jsonl(hosts).splitlines()]
    assert shown
    file = hosts.machines["a"].path(FILE)

    def written() -> list[Any]:
        return [json.loads(line) for line in file.read_text().splitlines()]

    eventually(lambda: len(written()) >= len(shown), "the file has them all")
    assert written()[: len(shown)] == shown


def _jsonl(hosts: TwoHosts) -> str:
    done = slimctl("--run-dir", hosts.run_dir("a"), "events", "-o", "jsonl")
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_what_happens_without_control_is_told_by_its_successor_once(
    hosts: TwoHosts, client: Workload, greeting: Workload
) -> None:
    client.call(visits.visit_often, greeting.address4, PORT, 1)
    hosts.slimds["a"].stop()
    hosts.start_slimd("a")
    client.call(visits.visit_often, greeting.address4, PORT, 3)
    name = client.call(visits.visit_often, greeting.address4, PORT, 1)[0]
    eventually(lambda: opened(hosts, "a", [name]), "the last of them is told of")
    cookies = [event.cookie for event in past(hosts, "a") if isinstance(event, ConnectionOpened)]
    assert len(cookies) == len({*cookies}) == 4


def test_a_client_that_does_not_read_costs_slimd_nothing(
    hosts: TwoHosts, client: Workload, greeting: Workload
) -> None:
    pid = hosts.pid("a", "control")
    follower = hosts.start(
        [
            *hosts.machines["a"].prefix,
            str(BIN / "slimctl"),
            "--run-dir",
            "/run/slim",
            "events",
            "--follow",
        ],
        "follower",
    )
    os.kill(follower.pid, signal.SIGSTOP)
    try:
        names = client.call(visits.visit_often, greeting.address4, PORT, TIMES)
        eventually(lambda: len(opened(hosts, "a", names)) == TIMES, "others are told of all")
        assert hosts.pid("a", "control") == pid
    finally:
        os.kill(follower.pid, signal.SIGCONT)
        follower.stop()


def test_metrics_count_what_the_program_did(
    hosts: TwoHosts, client: Workload, greeting: Workload, tmp_path: Path
) -> None:
    path = tmp_path / "metrics.sock"
    slimctl_a = [str(BIN / "slimctl"), "--run-dir", str(hosts.run_dir("a"))]
    argv = [*slimctl_a, "metrics", "--listen", str(path)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as serving:
        try:
            assert serving.stdout is not None
            assert serving.stdout.readline() == f"metrics at {path}\n"
            before = scrape(path)
            assert before["slim_up", ()] == 1
            client.call(visits.visit_often, greeting.address4, PORT, TIMES)
            labels = (("direction", "out"), ("path", "fast"))
            opened = ("slim_connections_opened_total", (*labels, ("verdict", "allow")))
            eventually(
                lambda: scrape(path).get(opened, 0) - before.get(opened, 0) == TIMES,
                "every connection is counted",
            )
            after = scrape(path)
            took = ("slim_setup_seconds_count", labels)
            assert after[took] - before.get(took, 0) == TIMES
            assert after["slim_containers", ()] == hosts.status("a").containers
            sent = ("slim_payload_bytes_total", (("direction", "sent"),))
            assert after[sent] >= before[sent]
        finally:
            serving.send_signal(signal.SIGINT)
        assert serving.wait(10) == 130


def scrape(path: Path) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """As Prometheus reads them: name and labels -> value."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(10)
        sock.connect(str(path))
        accept = "application/openmetrics-text; version=1.0.0"
        sock.sendall(f"GET /metrics HTTP/1.0\r\nAccept: {accept}\r\n\r\n".encode())
        answer = b"".join(iter(lambda: sock.recv(65536), b""))
    head, _, body = answer.decode().partition("\r\n\r\n")
    assert head.startswith("HTTP/1.0 200 OK")
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(body)  # type: ignore[no-untyped-call]
        for sample in family.samples
    }
