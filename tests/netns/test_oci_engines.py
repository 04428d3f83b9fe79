"""Engines above the runtimes: podman as `slimctl oci install` leaves it, and slim-runc for those
that drop listenerPath."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from support.capabilities import find
from support.measuring import vxlan_packets
from support.oci import PATIENCE_S, oci_runtime, programs
from support.probes import peers
from support.two_hosts import BIN, TESTS, Workload

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lab.hosts import Container

    from support.two_hosts import TwoHosts

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_netns, pytest.mark.needs_program("runc")]

BULK_BYTES = 8 << 20
NOISE_PACKETS = 50
PORT = 8000
# What this machine's hard limits and its hybrid cgroups leave of podman's defaults.
PODMAN_RUN = ("--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024")
PLAIN_SECTION = {
    "defaultAction": "SCMP_ACT_ALLOW",
    "syscalls": [{"names": ["mount"], "action": "SCMP_ACT_ERRNO"}],
}


class Podman:
    """podman on host a, its storage in the lab's directory."""

    def __init__(self, hosts: TwoHosts) -> None:
        self.hosts = hosts
        directory = hosts.directory("podman")
        self._rootfs = directory / "rootfs"
        self._rootfs.mkdir()
        self.words = (
            *hosts.machines["a"].prefix,
            find("podman"),
            *("--root", str(directory / "root"), "--runroot", str(directory / "runroot")),
            *("--cgroup-manager", "cgroupfs", "--runtime", find("runc")),
        )
        self._names: list[str] = []

    def start(self, name: str, *options: str) -> Workload:
        """A container that waits, on the overlay."""
        network: Container = self.hosts._container("a")
        container = f"{name}-{os.getpid()}"
        self._names.append(container)
        path = f"PATH={Path(sys.executable).parent}:/usr/bin:/bin"
        volumes = [word for each in programs() for word in ("-v", f"{each}:{each}:ro")]
        self.run(
            *("run", "--detach", "--name", container, *PODMAN_RUN, *volumes, *options),
            *("--network", f"ns:/run/netns/{network.netns}"),
            *("--env", f"PYTHONPATH={TESTS}", "--env", path),
            *("--rootfs", str(self._rootfs), "sleep", "300"),
        )
        return Workload(
            self.hosts, name, network, (*self.words, "exec", "--interactive", container)
        )

    def run(self, *words: str) -> None:
        done = subprocess.run(
            [*self.words, *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr

    def close(self) -> None:
        for name in self._names:
            subprocess.run(
                [*self.words, "rm", "--force", "--time", "0", name],
                capture_output=True,
                timeout=PATIENCE_S,
                check=False,
            )


@pytest.fixture(scope="module")
def podman(hosts: TwoHosts) -> Iterator[Podman]:
    """Installed for Slim, on a host with an /etc of its own."""
    slimctl = str(BIN / "slimctl")
    hosts.on_host("a", slimctl, "oci", "install", "podman", "--yes")
    podman = Podman(hosts)
    yield podman
    podman.close()
    hosts.on_host("a", slimctl, "oci", "uninstall", "podman", "--yes")


def bulk(hosts: TwoHosts, client: Workload, server: Workload, port: int) -> int:
    """Packets on the overlay's link while that much is echoed."""
    before = vxlan_packets(hosts)
    running = client.probe(peers.stay, server.address4, port, BULK_BYTES)
    running.result()
    running.tell("echo")
    assert running.result() == BULK_BYTES
    running.stop()
    return vxlan_packets(hosts) - before


@pytest.mark.needs_program("podman")
def test_podmans_containers_are_brokered_without_an_option(
    hosts: TwoHosts, podman: Podman, server: Workload
) -> None:
    """Under podman's own profile, as installed."""
    contained = podman.start("shop", "--annotation", "slim.label.app=shop")
    server.probe(peers.greet_server, "0.0.0.0", PORT).result()
    contained.probe(peers.greet_server, "0.0.0.0", PORT + 1).result()
    assert contained.call(peers.visit, server.address4, PORT)["client_peer"] == (
        f"{server.address4}:{PORT}"
    )
    assert bulk(hosts, contained, server, PORT) < NOISE_PACKETS
    assert bulk(hosts, server, contained, PORT + 1) < NOISE_PACKETS


def test_slim_runc_brings_a_container_whose_profile_names_no_agent(
    hosts: TwoHosts, server: Workload
) -> None:
    with oci_runtime(hosts, "a", "slim-runc") as runtime:
        section = json.dumps(PLAIN_SECTION).encode()
        contained = runtime.start("docked", runtime.new_network(), seccomp=section)
        server.probe(peers.greet_server, "0.0.0.0", PORT + 2).result()
        assert bulk(hosts, contained, server, PORT + 2) < NOISE_PACKETS
