"""Containers of real OCI runtimes: brokered in both directions, their execs and their pods."""

from __future__ import annotations

import itertools
import json
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from lab.commands import run

from slim.broker.admin import client as admin_client
from slim.broker.admin import messages
from slim.broker.oci import profile
from support.measuring import vxlan_packets
from support.oci import OPEN_PROFILE, SOCKET, OciRuntime, oci_runtime
from support.polling import eventually
from support.probes import peers
from support.two_hosts import probe_argv

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.two_hosts import TwoHosts, Workload

pytestmark = [
    pytest.mark.needs_root,
    pytest.mark.needs_netns,
    pytest.mark.needs_program("runc", "crun"),
]

BULK_BYTES = 8 << 20
NOISE_PACKETS = 50
CROWD = 24
SLACK_FDS = CROWD // 4
"""Our own questions, and what earlier tests ended, come and go; a leak is one per container."""
_ports = itertools.count(8000)


@pytest.fixture
def port() -> int:
    """One that no other test listens on."""
    return next(_ports)


@pytest.fixture
def greeting_port(server: Workload) -> int:
    """Of a greeting server in `server`."""
    number = next(_ports)
    server.probe(peers.greet_server, "0.0.0.0", number).result()
    return number


@pytest.fixture(scope="module", params=["runc", "crun"])
def runtime(hosts: TwoHosts, request: pytest.FixtureRequest) -> Iterator[OciRuntime]:
    """On host a; `server` of the others is slim-run's, on host b."""
    with oci_runtime(hosts, "a", request.param) as runtime:
        yield runtime


def containers(hosts: TwoHosts, host: str = "a") -> list[messages.Container]:
    run_dir = hosts.run_dir(host)
    return admin_client.ask(run_dir, messages.GetContainers(), messages.Containers).containers


def of_workload(hosts: TwoHosts, workload: Workload) -> list[messages.Container]:
    return [row for row in containers(hosts) if workload.address4 in row.addresses]


def named(hosts: TwoHosts, workload: Workload) -> list[messages.Container]:
    """By the container's id, which begins with the name."""
    return [row for row in containers(hosts) if row.command[0].startswith(f"{workload.name}-")]


def lines_about(hosts: TwoHosts, container: str) -> list[str]:
    """What the slimds of host a, one after the other, logged of a runtime's container."""
    logs = sorted(hosts.host("a").directory.glob("slimd*.log"))
    lines = [line for log in logs for line in log.read_text(errors="replace").splitlines()]
    return [line for line in lines if f"container {container!r}" in line]


def bulk(hosts: TwoHosts, client: Workload, server: Workload, port: int) -> int:
    """Packets on the overlay's link while that much is echoed."""
    before = vxlan_packets(hosts)
    running = client.probe(peers.stay, server.address4, port, BULK_BYTES)
    running.result()
    running.tell("echo")
    assert running.result() == BULK_BYTES
    running.stop()
    return vxlan_packets(hosts) - before


def test_connections_from_and_to_a_container_cross_the_hosts_network(
    hosts: TwoHosts, runtime: OciRuntime, server: Workload, port: int, greeting_port: int
) -> None:
    contained = runtime.start("both", runtime.new_network(), annotations={"slim.workload": "both"})
    contained.probe(peers.greet_server, "0.0.0.0", port).result()
    seen = contained.call(peers.visit, server.address4, greeting_port)
    assert seen["peer"].startswith(f"{contained.address4}:")
    assert bulk(hosts, contained, server, greeting_port) < NOISE_PACKETS
    assert bulk(hosts, server, contained, port) < NOISE_PACKETS
    assert {(row.workload, row.namespace) for row in of_workload(hosts, contained)} == {
        ("both", "default")
    }


def test_the_first_process_is_brokered_like_those_of_an_exec(
    hosts: TwoHosts, runtime: OciRuntime, server: Workload, port: int
) -> None:
    argv = probe_argv(peers.greet_server, "0.0.0.0", port)
    alone = runtime.start("alone", runtime.new_network(), argv=argv)
    local = f":{port}"
    eventually(
        lambda: any(row.overlay_local.endswith(local) for row in hosts.rows("a")),
        "a listener of the container's first process",
    )
    assert bulk(hosts, server, alone, port) < NOISE_PACKETS


def test_every_exec_is_a_container_of_its_workload_until_it_ends(
    hosts: TwoHosts, runtime: OciRuntime
) -> None:
    contained = runtime.start("execs", runtime.new_network(), annotations={"slim.label.app": "x"})
    (first,) = of_workload(hosts, contained)
    running = contained.start("cat")
    eventually(lambda: len(of_workload(hosts, contained)) == 2, "the exec is registered")
    assert {(row.workload, row.labels["app"]) for row in of_workload(hosts, contained)} == {
        (first.workload, "x")
    }
    assert running.popen.stdin is not None
    running.popen.stdin.close()
    eventually(lambda: len(of_workload(hosts, contained)) == 1, "only the first is left")
    runtime.run("kill", first.command[0], "KILL")
    eventually(lambda: not of_workload(hosts, contained), "the workload is forgotten")


def test_containers_of_one_pod_are_one_workload(
    hosts: TwoHosts, runtime: OciRuntime, server: Workload, port: int, greeting_port: int
) -> None:
    network = runtime.new_network()
    pod = {
        "io.kubernetes.cri.sandbox-name": "pod-1",
        "io.kubernetes.cri.sandbox-namespace": "shop",
    }
    web = runtime.start("web", network, annotations={**pod, "slim.label.app": "web"})
    sidecar = runtime.start("sidecar", network, annotations=pod)
    web.probe(peers.greet_server, "0.0.0.0", port).result()
    assert bulk(hosts, server, web, port) < NOISE_PACKETS
    assert bulk(hosts, sidecar, server, greeting_port) < NOISE_PACKETS
    rows = of_workload(hosts, web)
    assert len({row.command[0] for row in rows}) == 2
    assert {(row.workload, row.namespace, row.labels["app"]) for row in rows} == {
        ("pod-1", "shop", "web")
    }


def test_labels_that_contradict_the_pods_are_refused_and_its_socket_calls_fail(
    hosts: TwoHosts, runtime: OciRuntime
) -> None:
    network = runtime.new_network()
    runtime.start("web", network, annotations={"slim.label.app": "web"})
    liar = runtime.create("liar", network, annotations={"slim.label.app": "admin"})
    # runc brings the listener when it creates the container, crun when it starts it.
    runtime.run("start", liar)
    (line,) = eventually(lambda: lines_about(hosts, liar), "the refusal is logged")
    assert "is refused: the namespace already is workload" in line
    refused = runtime.workload("liar", network, liar).try_run(
        "python3", "-c", "import socket; socket.socket().listen()"
    )
    assert "Function not implemented" in refused.stderr


def test_identity_comes_from_the_profile_too(hosts: TwoHosts, runtime: OciRuntime) -> None:
    metadata = '{"namespace": "shop", "labels": {"tier": "front"}}'
    contained = runtime.start("profiled", runtime.new_network(), metadata=metadata)
    (row,) = of_workload(hosts, contained)
    assert (row.namespace, row.labels) == ("shop", {"tier": "front"})


def test_a_container_is_supervised_by_the_next_slimd(
    hosts: TwoHosts, runtime: OciRuntime, server: Workload, greeting_port: int
) -> None:
    contained = runtime.start("survivor", runtime.new_network())
    os.kill(hosts.pid("a", "control"), signal.SIGTERM)
    eventually(lambda: not hosts.answers("a"), "slimd has ended")
    hosts.start_slimd("a")
    assert bulk(hosts, contained, server, greeting_port) < NOISE_PACKETS
    assert len({row.workload for row in of_workload(hosts, contained)}) == 1


@pytest.mark.parametrize("netns", ["own", "host"])
def test_a_container_on_no_overlay_runs_as_without_slim(
    hosts: TwoHosts, runtime: OciRuntime, server: Workload, netns: str, port: int
) -> None:
    """An engine's default profile reaches these, too."""
    runtime.start("beside", runtime.new_network())
    bystander = runtime.start_elsewhere(f"bystander-{netns}", netns)
    bystander.probe(peers.greet_server, "127.0.0.1", port).result()
    seen = bystander.call(peers.visit, "127.0.0.1", port)
    assert seen["client_peer"] == f"127.0.0.1:{port}"
    # Nobody's sockets were exchanged, nor its listener told to anyone.
    assert not [row for row in hosts.rows("a") if row.overlay_local.endswith(f":{port}")]
    row = next(row for row in containers(hosts) if row.command[0].startswith(bystander.name))
    assert row.addresses == []


def open_fds(hosts: TwoHosts) -> dict[str, int]:
    """How many each process of slimd on host a has."""
    pids = {role: hosts.pid("a", role) for role in ("control", "traps", "keeper")}
    return {role: len(os.listdir(f"/proc/{pid}/fd")) for role, pid in pids.items()}


def test_many_at_once_are_all_registered_and_leave_nothing_behind(
    hosts: TwoHosts, runtime: OciRuntime
) -> None:
    network = runtime.new_network()
    # Holds the workload, whose own fds are not what is counted.
    holder = runtime.start("holder", network)
    eventually(lambda: of_workload(hosts, holder), "the holder is registered")
    before = open_fds(hosts)
    with ThreadPoolExecutor(8) as pool:
        crowd = [*pool.map(lambda number: runtime.start(f"c{number}", network), range(CROWD))]
        eventually(
            lambda: len(of_workload(hosts, holder)) == CROWD + 1, "all of them are registered", 30
        )
        names = [row.command[0] for row in of_workload(hosts, holder)]
        ended = [name for name in names if not name.startswith("holder")]
        assert len(set(ended)) == len(crowd)
        [*pool.map(lambda name: runtime.run("delete", "--force", name), ended)]
    eventually(lambda: len(of_workload(hosts, holder)) == 1, "only the holder is left", 30)

    def has_no_more() -> bool:
        return all(count < before[role] + SLACK_FDS for role, count in open_fds(hosts).items())

    eventually(has_no_more, "no fd is left open")


def test_a_container_that_starts_while_slimd_is_dead_is_brokered_by_the_next(
    hosts: TwoHosts, runtime: OciRuntime, server: Workload, greeting_port: int
) -> None:
    """The keeper holds the agent's socket: the listener waits in its queue."""
    control = hosts.pid("a", "control")
    os.kill(control, signal.SIGKILL)
    eventually(lambda: not hosts.answers("a"), "slimd is dead")
    contained = runtime.start("early", runtime.new_network())
    hosts.start_slimd("a")
    eventually(lambda: of_workload(hosts, contained), "the container is registered")
    assert bulk(hosts, contained, server, greeting_port) < NOISE_PACKETS


def test_a_container_that_comes_to_the_overlay_later_is_brokered_from_its_next_exec_on(
    hosts: TwoHosts, runtime: OciRuntime, server: Workload, greeting_port: int
) -> None:
    network = runtime.new_network()
    run("ip", "-n", network.netns, "address", "flush", "dev", "eth0")
    late = runtime.start("late", network)
    (first,) = eventually(lambda: named(hosts, late), "the container is registered")
    assert first.addresses == []
    run("ip", "-n", network.netns, "address", "add", f"{late.address4}/16", "dev", "eth0")
    assert bulk(hosts, late, server, greeting_port) < NOISE_PACKETS
    assert {*itertools.chain(*(row.addresses for row in named(hosts, late)))} == {late.address4}


def test_crun_takes_the_agents_path_from_an_annotation(
    hosts: TwoHosts, server: Workload, greeting_port: int
) -> None:
    section = json.loads(profile.add_slim(OPEN_PROFILE, SOCKET))
    del section["listenerPath"]
    with oci_runtime(hosts, "a", "crun") as runtime:
        contained = runtime.start(
            "annotated",
            runtime.new_network(),
            annotations={"run.oci.seccomp.receiver": SOCKET},
            seccomp=json.dumps(section).encode(),
        )
        assert bulk(hosts, contained, server, greeting_port) < NOISE_PACKETS
