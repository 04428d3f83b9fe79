"""Containers of real OCI runtimes on the hosts of two_hosts: bundles made here, runc and crun.

A container sees this machine's programs, read-only, and runs in a namespace of the lab. Its first
process only waits; probes are brought in by the runtime's exec.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lab.machines import REPOSITORY

from slim.broker.oci import profile
from support.capabilities import find
from support.two_hosts import BIN, TESTS, TwoHosts, Workload

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from lab.hosts import Container

PATIENCE_S = 30
SOCKET = "/run/slim/oci.sock"
OPEN_PROFILE = json.dumps({"defaultAction": "SCMP_ACT_ALLOW"}).encode()
_numbers = count()
# crun wants cgroup v2 where Debian 12 and this kernel's owner may have the hybrid hierarchy.
_PRIVATE_CGROUPS = (
    "mount --make-rprivate /; umount --recursive /sys/fs/cgroup; "
    'mount -t cgroup2 none /sys/fs/cgroup; exec "$@"'
)


class OciRuntime:
    """runc, crun or our slim-runc on one of the hosts; `close` ends its containers."""

    def __init__(self, hosts: TwoHosts, host: str, program: str) -> None:
        self.hosts = hosts
        self.host = host
        self.program = program
        directory = hosts.directory(program)
        self._root = directory / "state"
        self._bundles = directory
        words = [find(program) or str(BIN / program), "--root", str(self._root)]
        if program == "crun":
            words += ["--cgroup-manager=disabled"]
            if not Path("/sys/fs/cgroup/cgroup.controllers").exists():
                words = ["unshare", "--mount", "sh", "-ec", _PRIVATE_CGROUPS, "sh", *words]
        self.words = (*hosts.machines[host].prefix, *words)
        self._ids: list[str] = []

    def close(self) -> None:
        for container in reversed(self._ids):
            subprocess.run(
                [*self.words, "delete", "--force", container],
                capture_output=True,
                timeout=PATIENCE_S,
                check=False,
            )

    def new_network(self) -> Container:
        """A namespace on the overlay, for one or several containers."""
        return self.hosts._container(self.host)

    def start(self, name: str, network: Container, **options: Any) -> Workload:
        """Create and start a container; its commands come by exec."""
        container = self.create(name, network, **options)
        self.run("start", container)
        return self.workload(name, network, container)

    def start_elsewhere(self, name: str, netns: str) -> Workload:
        """A container in a namespace of its `own`, with no link but lo, or in the `host`'s."""
        container = self.create(name, netns)
        self.run("start", container)
        # Only its name and commands are of use.
        return self.workload(name, self.hosts.host(self.host).containers[0], container)

    def create(
        self,
        name: str,
        network: Container | str,
        *,
        annotations: dict[str, str] | None = None,
        metadata: str = "",
        seccomp: bytes | None = None,
        argv: Sequence[str] = ("sleep", "300"),
    ) -> str:
        """The id of a container that is created and not started."""
        container = f"{name}-{os.getpid()}-{next(_numbers)}"
        bundle = self._bundles / container
        (bundle / "rootfs").mkdir(parents=True)
        if seccomp is None:
            seccomp = profile.add_slim(OPEN_PROFILE, SOCKET, metadata)
        netns = network if isinstance(network, str) else f"/run/netns/{network.netns}"
        config = _config(netns, argv, json.loads(seccomp))
        config["annotations"] = annotations or {}
        (bundle / "config.json").write_text(json.dumps(config))
        self._ids.append(container)
        self.run("create", "--bundle", str(bundle), container)
        return container

    def workload(self, name: str, network: Container, container: str) -> Workload:
        """Commands in the container."""
        return Workload(self.hosts, name, network, (*self.words, "exec", container))

    def run(self, *words: str) -> None:
        """A command of the runtime, to its end."""
        # A pipe would be held open by the container.
        with (self._bundles / f"{next(_numbers)}.log").open("w+") as log:
            done = subprocess.run(
                [*self.words, *words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                timeout=PATIENCE_S,
                check=False,
            )
            log.seek(0)
            assert done.returncode == 0, f"{self.program} {words}: {log.read()}"


@contextlib.contextmanager
def oci_runtime(hosts: TwoHosts, host: str, program: str) -> Iterator[OciRuntime]:
    """The runtime, for the block's length."""
    runtime = OciRuntime(hosts, host, program)
    try:
        yield runtime
    finally:
        runtime.close()


def _config(netns: str, argv: Sequence[str], seccomp: dict[str, Any]) -> dict[str, Any]:
    """config.json (runtime specification 1.0)."""
    capabilities = ["CAP_KILL", "CAP_NET_BIND_SERVICE"]
    seccomp.setdefault("architectures", ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"])
    return {
        "ociVersion": "1.0.2",
        "process": {
            "terminal": False,
            "user": {"uid": 0, "gid": 0},
            "args": [*argv],
            "env": [
                f"PATH={Path(sys.executable).parent}:/usr/sbin:/usr/bin:/sbin:/bin",
                f"PYTHONPATH={TESTS}",
                "LC_ALL=C",
            ],
            "cwd": "/",
            "capabilities": {kind: capabilities for kind in ("bounding", "effective", "permitted")},
            "noNewPrivileges": True,
        },
        "root": {"path": "rootfs"},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
            {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs"},
            *(
                {
                    "destination": str(path),
                    "type": "bind",
                    "source": str(path),
                    "options": ["rbind", "ro"],
                }
                for path in programs()
            ),
        ],
        "linux": {
            "namespaces": [
                *({"type": kind} for kind in ("pid", "ipc", "uts", "mount")),
                *_network(netns),
            ],
            "seccomp": seccomp,
        },
    }


def _network(netns: str) -> list[dict[str, str]]:
    """A path, `host` or `own`."""
    if netns == "host":
        return []
    return [{"type": "network"} if netns == "own" else {"type": "network", "path": netns}]


def programs() -> list[Path]:
    """The directories that Python, the probes and simple programs lie in."""
    system = [Path(name) for name in ("/usr", "/lib", "/lib64", "/bin", "/sbin")]
    python = [Path(sys.prefix), Path(sys.base_prefix), REPOSITORY]
    places = [path for path in (*system, *python) if path.exists()]
    return [
        path
        for path in dict.fromkeys(places)
        if not any(path != other and path.is_relative_to(other) for other in places)
    ]
