"""slimd on the hosts of the lab: certificates, configuration, start, questions, stop."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Self

import msgspec

from lab.commands import run
from lab.hosts import OVERLAY4, OVERLAY6, uninterrupted
from lab.places import Place
from lab.processes import Process
from slim.broker.errors import SlimError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType

    from lab.hosts import Container
    from lab.machines import Machine

RUN_DIR = "/run/slim"
CONFIG = "/etc/slim/slimd.toml"
PEERS_PORT = 7946
READY_S = 15.0
COMMAND_S = 10.0


class ProcessRow(msgspec.Struct, frozen=True):
    """One process in `slimctl status --json`."""

    role: str
    pid: int


class StatusRow(msgspec.Struct, frozen=True):
    processes: list[ProcessRow]


class StatusAnswer(msgspec.Struct, frozen=True):
    """The part of `slimctl status --json` that the lab needs."""

    status: StatusRow


class ConnectionRow(msgspec.Struct, frozen=True):
    """The part of one connection in `slimctl connections --json` that the lab needs."""

    direction: str
    overlay_local: str
    overlay_peer: str
    host_peer: str
    path: str
    reason: str
    state: str


class ConnectionsAnswer(msgspec.Struct, frozen=True):
    connections: list[ConnectionRow]


class Slimd:
    """The broker of one host; a context manager that stops it and what it keeps running."""

    wrapper: tuple[str, ...] = ()
    """Words before its command."""

    def __init__(self, machine: Machine, authority: Path, guard: str = "portable") -> None:
        """`authority`: the directory that `make_authority` filled."""
        self.guard = guard
        self._machine = machine
        self._authority = authority
        self._process: Process | None = None

    @property
    def host(self) -> str:
        return self._machine.host.name

    def __enter__(self) -> Self:
        self._configure()
        host = self._machine.host
        words = (*self._machine.prefix, *self.wrapper)
        argv = [*words, _command("slimd"), "--config", CONFIG]
        self._process = Process(f"slimd of host {host.name}", argv, host.directory / "slimd.log")
        try:
            self._process.wait_until(self._answers, READY_S)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End slimd and its keeper. What resists goes with the lab's namespaces."""
        if self._process is None:
            return
        with uninterrupted():
            log = self._machine.host.directory / "stop.log"
            release = Process("slimctl stop", self._slimctl("stop", "--release"), log)
            # slimctl waits until slimd is gone, and slimd until we have reaped it.
            self._process.wait(COMMAND_S)
            release.wait(COMMAND_S)
            release.stop()
            self._process.stop(signal.SIGTERM)
            if self.guard == "kernel":
                self._clean_up()
        self._process = None

    def _clean_up(self) -> None:
        """Remove what the kernel guard left in the machine's cgroups, which are not the lab's."""
        words = (_command("slimd"), "--config", CONFIG, "--cleanup", "--cut")
        run(*self._machine.prefix, *words, timeout_s=COMMAND_S)

    @property
    def prefix(self) -> tuple[str, ...]:
        """Words that enter its host's mounts and network."""
        return self._machine.prefix

    def place(self, container: Container, workload: str) -> Place:
        """Where programs of the container run with Slim."""
        words = (_command("slim-run"), "--run-dir", RUN_DIR, "--workload", workload)
        return Place(
            name=f"{container.netns} with Slim",
            address=container.address4,
            prefix=(*self._machine.prefix, *words, "--netns", container.netns, "--"),
        )

    def slimctl(self, *words: str) -> str:
        """What slimctl prints; SlimError if it fails."""
        return run(*self._slimctl(*words), timeout_s=COMMAND_S)

    def _slimctl(self, *words: str) -> list[str]:
        return [*self._machine.prefix, _command("slimctl"), "--run-dir", RUN_DIR, *words]

    def processes(self) -> dict[str, int]:
        """Process ids by role; what does not run is left out."""
        answer = msgspec.json.decode(self.slimctl("status", "--json"), type=StatusAnswer)
        rows = answer.status.processes
        return {process.role: process.pid for process in rows if process.pid > 0}

    def connections(self) -> list[ConnectionRow]:
        """The connections that slimd knows."""
        answer = self.slimctl("connections", "--json")
        return msgspec.json.decode(answer, type=ConnectionsAnswer).connections

    def place_on(self, cores: Iterable[int]) -> None:
        """Let all threads of slimd run on these cores only."""
        allowed = set(cores)
        for pid in self.processes().values():
            with contextlib.suppress(FileNotFoundError):
                for thread in os.listdir(f"/proc/{pid}/task"):
                    with contextlib.suppress(ProcessLookupError):
                        os.sched_setaffinity(int(thread), allowed)

    def _answers(self) -> bool:
        try:
            self.slimctl("status")
        except SlimError:
            return False
        return True

    def _configure(self) -> None:
        host = self._machine.host
        directory = self._machine.path(CONFIG).parent
        directory.mkdir(mode=0o755, exist_ok=True)
        networks = (f"10.77.{host.index}.0/24", f"fd77:0:0:{host.index}::/64")
        named = [word for network in networks for word in ("--network", network)]
        words = ("issue", str(self._authority), host.name, *named, "--out", str(directory))
        run(_command("slimctl"), "pki", *words)
        (directory / "authority.crt").write_bytes((self._authority / "authority.crt").read_bytes())
        self._machine.path(CONFIG).write_text(
            f"""\
guard = "{self.guard}"
run_dir = "{RUN_DIR}"

[host]
name = "{host.name}"
addresses = ["{host.address4}", "{host.address6}"]
ports = "20000-29999"

[[overlay]]
name = "lab"
networks = ["{OVERLAY4}", "{OVERLAY6}"]

[peers]
listen = "{host.address4}:{PEERS_PORT}"
certificate = "{host.name}.crt"
key = "{host.name}.key"
authority = "authority.crt"

[log]
format = "human"
"""
        )


def make_authority(directory: Path) -> Path:
    """Fill a new directory with an authority's certificate and key; gives the directory."""
    run(_command("slimctl"), "pki", "init", str(directory))
    return directory


def _command(name: str) -> str:
    """One of Slim's commands, from the environment that we run in ourselves."""
    path = Path(sys.executable).parent / name
    if not path.exists():
        raise SlimError(
            f"{name} is not installed beside {sys.executable}",
            hint="pip install the clone into this Python environment",
        )
    return str(path)
