"""NetworkPolicy documents in force: real connections get the verdicts of the truth table.

A few hundred verdicts in the ordinary run, all cases that are about labels with SLIM_SOAK=1.
"""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
from lab.commands import run

from support.policies import put_in_force, reload
from support.probes import matrix, peers, revoked
from support.truth_table import Case, Pod, Step, as_document, cases
from support.two_hosts import BIN

if TYPE_CHECKING:
    from pathlib import Path

    from support.two_hosts import Running, TwoHosts, Workload

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_netns]

SOAK = os.environ.get("SLIM_SOAK", "") not in ("", "0")
DIRECTORY = "/etc/slim/policies"
TABLE = f'[plugins.networkpolicy]\npath = "{DIRECTORY}"\n'
EVERY = 47
"""Of the cases that can be asked of containers, so many apart are asked in the ordinary run."""
FEWEST_VERDICTS = 300
ENDED = ("ECONNRESET", "ECONNABORTED")
PORT = 8300


def described(pods: dict[str, Pod]) -> dict[str, tuple[dict[str, str], dict[tuple[str, str], int]]]:
    return {name: (pod.labels, pod.ports) for name, pod in pods.items()}


PODS = cases()[0].steps[0].pods


def fits(step: Step) -> bool:
    """Whether our containers can be its pods: they have addresses of their own."""
    return described(step.pods) == described(PODS) and "ipBlock" not in as_document(step).decode()


def chosen() -> list[Case]:
    possible = [case for case in cases() if all(fits(step) for step in case.steps)]
    return possible if SOAK else possible[::EVERY]


def policies(hosts: TwoHosts, host: str) -> Path:
    directory = hosts.machines[host].path(DIRECTORY)
    directory.mkdir(exist_ok=True)
    return directory


def enforce(hosts: TwoHosts, documents: bytes) -> None:
    """Put the documents in force on both hosts."""
    for host in ("a", "b"):
        (policies(hosts, host) / "policies.yaml").write_bytes(documents)
        put_in_force(hosts, host, TABLE)


@pytest.fixture(scope="module")
def pods(hosts: TwoHosts) -> dict[str, Workload]:
    """The nine pods of the truth table, on two hosts in turn."""
    found = {}
    for number, (name, pod) in enumerate(sorted(PODS.items())):
        host = "ab"[number % 2]
        workload = hosts.workload(host, name.replace("/", "-"), **pod.labels)
        named = [
            word
            for (protocol, port_name), port in pod.ports.items()
            if protocol == "TCP"
            for word in ("--port", f"{port_name}={port}")
        ]
        found[name] = workload.under("--namespace", pod.namespace, *named)
    return found


@pytest.fixture(scope="module")
def running(pods: dict[str, Workload]) -> dict[str, Running]:
    ports = sorted({port for pod in PODS.values() for (_, port) in pod.ports.items()})
    probes = {
        name: pod.probe(matrix.serve_and_try, "0.0.0.0", json.dumps(ports))
        for name, pod in pods.items()
    }
    assert {probe.result() for probe in probes.values()} == {"listening"}
    return probes


def test_enough_is_asked() -> None:
    asked = sum(
        row.protocol == "TCP" for case in chosen() for step in case.steps for row in step.rows
    )
    assert asked >= FEWEST_VERDICTS


@pytest.mark.parametrize("case", chosen(), ids=lambda case: f"case-{case.number}")
def test_connections_get_the_verdicts_of_the_case(
    hosts: TwoHosts, pods: dict[str, Workload], running: dict[str, Running], case: Case
) -> None:
    for step in case.steps:
        enforce(hosts, as_document(step))
        wrong = []
        for source, probe in running.items():
            rows = [row for row in step.rows if (row.source, row.protocol) == (source, "TCP")]
            probe.tell(json.dumps([(pods[row.destination].address4, row.port) for row in rows]))
            expected = ["allowed" if row.ingress and row.egress else "EACCES" for row in rows]
            outcomes = zip(rows, probe.result(), expected, strict=True)
            wrong += [(row, seen) for row, seen, right in outcomes if seen != right]
        assert wrong == []


def document(name: str, spec: dict[str, Any], **annotations: str) -> bytes:
    return json.dumps(
        {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": {
                "name": name,
                "namespace": "shop",
                "annotations": {f"policy.slim/{key}": value for key, value in annotations.items()},
            },
            "spec": spec,
        }
    ).encode()


DENY_ALL = {"podSelector": {"matchLabels": {"app": "db"}}, "policyTypes": ["Ingress"]}
NOTHING = b""


@pytest.fixture(scope="module")
def web(hosts: TwoHosts) -> Workload:
    return hosts.workload("a", "web", app="web").under("--namespace", "shop")


@pytest.fixture(scope="module")
def db(hosts: TwoHosts) -> Workload:
    workload = hosts.workload("b", "db", app="db").under("--namespace", "shop")
    workload.probe(peers.greet_server, "0.0.0.0", PORT).result()
    return workload


def test_what_audit_mode_would_deny_is_allowed_counted_and_shown(
    hosts: TwoHosts, web: Workload, db: Workload
) -> None:
    enforce(hosts, document("closed", DENY_ALL, mode="audit"))
    probe = web.probe(peers.stay, db.address4, PORT)
    seen = probe.result()
    for host in ("a", "b"):
        row = hosts.row(host, seen["client_name"] if host == "a" else seen["client_peer"])
        assert row.verdict == "audit"
        assert row.rule.startswith("would deny: networkpolicy:shop/closed")
    counters = hosts.status("b").counters
    assert [each for each in counters if each.startswith("would_deny networkpolicy:shop/closed")]
    probe.stop()


def test_a_new_document_cuts_what_it_forbids(hosts: TwoHosts, web: Workload, db: Workload) -> None:
    enforce(hosts, NOTHING)
    probe = web.probe(revoked.wait_for_end, db.address4, PORT)
    probe.result()
    enforce(hosts, document("closed", DENY_ALL))
    assert probe.result() in ENDED
    assert "errno" in web.call(peers.try_visit, db.address4, PORT)


def explain(hosts: TwoHosts, *words: object) -> tuple[int, list[str], str]:
    """Exit status of slimctl explain on host a, its lines without the last, and the last."""
    argv = [str(BIN / "slimctl"), "--run-dir", str(hosts.run_dir("a")), "explain"]
    done = subprocess.run(
        [*argv, *map(str, words)], capture_output=True, text=True, check=False, timeout=30
    )
    lines = (done.stdout or done.stderr).splitlines()
    return done.returncode, lines[:-1], lines[-1]


def test_explain_says_what_a_program_gets_and_why(
    hosts: TwoHosts, web: Workload, db: Workload
) -> None:
    enforce(hosts, document("closed", DENY_ALL))
    running = web.probe(revoked.report_ready)
    assert running.result() == "ready"
    source, destination = f"a: source:      shop/web at {web.address4} (app=web)", db.address4

    status, steps, end = explain(hosts, "web", destination, PORT)
    assert (status, steps[0], steps[1]) == (1, source, "a: egress:      allow: default")
    assert steps[2].startswith(f"a: destination: {destination} is on b, ")
    assert end == "denied (networkpolicy:shop/closed no ingress rule allows it)"
    assert web.call(peers.try_visit, destination, PORT) == {"errno": errno.EACCES}

    enforce(hosts, NOTHING)
    status, _, end = explain(hosts, "shop/web", destination, PORT)
    assert status == 0
    at_host = r"brokered, from host to host, to 192\.168\.[\d.]+:\d+ of b \(default\)"
    assert re.fullmatch(at_host, end)
    assert explain(hosts, web.address4, destination, PORT + 1)[2] == (
        "not brokered: over the overlay, no-listener (default)"
    )
    stranger = hosts.plain("b")
    _, steps, end = explain(hosts, "web", stranger.address4, PORT)
    assert end == "not brokered: over the overlay, not-brokered (default)"
    assert explain(hosts, "nobody", destination, PORT)[:2] == (
        5,
        ["slimctl: no workload of this host is called nobody"],
    )
    running.stop()


def test_one_bad_file_of_a_hundred_changes_nothing(
    hosts: TwoHosts, web: Workload, db: Workload
) -> None:
    enforce(hosts, document("closed", DENY_ALL))
    directory = policies(hosts, "b")
    try:
        for number in range(99):
            name = f"other-{number}"
            spec = {"podSelector": {"matchLabels": {"app": name}}}
            (directory / f"{name}.yaml").write_bytes(document(name, spec))
        (directory / "policies.yaml").unlink()
        (directory / "broken.yaml").write_bytes(document("Broken", {"podSelector": {"x": 1}}))
        answer = reload(hosts, "b")
        assert answer.mistakes
        assert all(f"{DIRECTORY}/broken.yaml:" in each.message for each in answer.mistakes)
        assert all(each.hint for each in answer.mistakes)
        assert "errno" in web.call(peers.try_visit, db.address4, PORT)

        (directory / "broken.yaml").unlink()
        assert reload(hosts, "b").mistakes == []
        assert "peer" in web.call(peers.try_visit, db.address4, PORT)
    finally:
        for file in directory.iterdir():
            file.unlink()


def test_diff_says_what_a_directory_would_change(
    hosts: TwoHosts, web: Workload, db: Workload, tmp_path: Path
) -> None:
    """The containers are those that slimctl ps names, the connections real ones afterwards."""
    enforce(hosts, NOTHING)
    web.probe(peers.stay, db.address4, PORT).result()
    listed = [
        row
        for host in ("a", "b")
        for row in json.loads(
            run(str(BIN / "slimctl"), "--run-dir", str(hosts.run_dir(host)), "ps", "--json")
        )["containers"]
        if row["namespace"] == "shop"
    ]
    containers = tmp_path / "containers.json"
    containers.write_text(json.dumps({"version": 1, "containers": listed}))
    new = tmp_path / "new.yaml"
    new.write_bytes(document("closed", DENY_ALL))
    old = tmp_path / "old.yaml"
    old.write_bytes(NOTHING)
    words = ("policy", "diff", str(old), str(new), "--containers", str(containers))
    done = subprocess.run(
        [str(BIN / "slimctl"), *words], capture_output=True, text=True, check=False, timeout=30
    )
    assert (done.returncode, done.stderr) == (1, "")
    changes = [line for line in done.stdout.splitlines() if not line.startswith(" ")]
    assert changes == [
        f"shop/web {near} to shop/db {far}, ports 1 to 65535:"
        for near, far in ((web.address4, db.address4), (web.address6, db.address6))
    ]


def test_apply_and_remove_change_what_is_in_force(
    hosts: TwoHosts, web: Workload, db: Workload, tmp_path: Path
) -> None:
    enforce(hosts, NOTHING)
    machine = hosts.machines["b"]
    file = tmp_path / "closed.yaml"
    file.write_bytes(document("closed", DENY_ALL))

    def policy(*words: str) -> str:
        slimctl = (str(BIN / "slimctl"), "--run-dir", str(hosts.run_dir("b")))
        return run(*machine.prefix, *slimctl, "policy", *words)

    said = policy("apply", "--yes", str(file))
    assert said.splitlines()[-1] == f"{DIRECTORY}/closed.yaml is in force"
    assert web.call(peers.try_visit, db.address4, PORT) == {"errno": errno.EACCES}
    assert "selects here: shop/db" in policy("show", "shop/closed")

    policy("remove", "--yes", "closed.yaml")
    assert "peer" in web.call(peers.try_visit, db.address4, PORT)
