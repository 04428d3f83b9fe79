"""Two hosts with slimd, an overlay, and workloads in which probes and programs run.

Built on contrib/lab. A probe is a function of a module below support/probes: it runs in a process
of its own, in the workload's namespace, under slim-run or without, and gives its result as JSON.
"""

from __future__ import annotations

import contextlib
import inspect
import itertools
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from lab.commands import run
from lab.hosts import OVERLAY4, OVERLAY6, Container, Host, Lab
from lab.machines import Machine
from lab.places import Place, enter_network
from lab.processes import Process
from lab.slimd import Slimd, make_authority

from slim.broker.admin import client, messages
from slim.broker.errors import ControlError
from support.polling import eventually

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from slim.broker.endpoints import Address

TESTS = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
PROBE_S = 30.0
PATIENCE = """
[limits]
resolve_budget_ms = 1000
connect_budget_ms = 5000
"""
"""On a busy machine the default of 20 ms would send some first connections over the overlay."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How one host's slimd differs from the lab's."""

    more: str = ""
    """Tables for the end of its configuration; without [limits] it gets PATIENCE."""
    ports: str = "20000-29999"
    overlay: tuple[str, ...] = ()
    """The overlay's networks, if not those of the lab."""
    networks: tuple[str, ...] = ()
    """What its certificate is for, if not the host's own overlay networks."""
    is_absent: bool = False
    wrapper: tuple[str, ...] = ()
    """Words before slimd's command."""
    guard: str = "portable"


class ConfiguredSlimd(Slimd):
    """The lab's slimd with other settings."""

    def __init__(self, machine: Machine, authority: Path, settings: Settings) -> None:
        super().__init__(machine, authority, settings.guard)
        self._settings = settings
        self.wrapper = settings.wrapper

    def _configure(self) -> None:
        super()._configure()
        settings, path = self._settings, self._machine.path("/etc/slim/slimd.toml")
        text = path.read_text().replace('"20000-29999"', f'"{settings.ports}"')
        if settings.overlay:
            theirs = json.dumps([*settings.overlay])
            text = text.replace(f'networks = ["{OVERLAY4}", "{OVERLAY6}"]', f"networks = {theirs}")
            assert theirs in text
        patience = "" if "[limits]" in settings.more else PATIENCE
        path.write_text(text + patience + settings.more)
        if settings.networks:
            issue_certificate(self._authority, self.host, settings.networks, path.parent)


def issue_certificate(
    authority: Path, host: str, networks: tuple[str, ...], directory: Path
) -> None:
    """Replace a host's certificate and key."""
    for suffix in ("crt", "key"):
        (directory / f"{host}.{suffix}").unlink()
    words = [word for network in networks for word in ("--network", network)]
    argv = ("pki", "issue", str(authority), host, *words, "--out", str(directory))
    run(str(BIN / "slimctl"), *argv)


class Running:
    """A probe or program that runs beside the test; its output is read line by line."""

    def __init__(self, argv: list[str], errors: Path) -> None:
        self._errors = errors
        with errors.open("wb") as log:
            self.popen = subprocess.Popen(
                argv,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
                env=environment(),
            )

    @property
    def pid(self) -> int:
        return self.popen.pid

    def result(self) -> Any:
        """The next value that the probe reports; AssertionError with what it said if none comes."""
        assert self.popen.stdout is not None
        # Every probe has an alarm(2), so that this ends.
        line = self.popen.stdout.readline()
        if not line:
            self.popen.wait(PROBE_S)
            raise AssertionError(
                f"the probe ended with {self.popen.returncode}: {self._errors.read_text()}"
            )
        return json.loads(line)

    def tell(self, line: str) -> None:
        """Write a line to its standard input."""
        assert self.popen.stdin is not None
        self.popen.stdin.write(line + "\n")
        self.popen.stdin.flush()

    def stop(self, number: signal.Signals = signal.SIGKILL) -> None:
        """End it and its children (one session); harmless if it has ended."""
        if self.popen.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.popen.pid, number)
        try:
            self.popen.wait(5)
        except subprocess.TimeoutExpired:
            os.killpg(self.popen.pid, signal.SIGKILL)
            self.popen.wait(5)
        for pipe in (self.popen.stdin, self.popen.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


class Workload:
    """A container on one of the hosts, with Slim (`prefix` is slim-run) or without."""

    def __init__(
        self, hosts: TwoHosts, name: str, container: Container, prefix: tuple[str, ...]
    ) -> None:
        self.name = name
        self.netns = container.netns
        self.address4 = str(container.address4)
        self.address6 = str(container.address6)
        self.prefix = prefix
        self._hosts = hosts
        self._container = container

    def address(self, version: int) -> str:
        return self.address4 if version == 4 else self.address6

    def place(self, version: int = 4) -> Place:
        """As contrib/lab names it."""
        address: Address = self._container.address4 if version == 4 else self._container.address6
        return Place(name=self.name, address=address, prefix=self.prefix)

    def plain(self) -> Workload:
        """The same container, entered without Slim."""
        return Workload(
            self._hosts, f"{self.name} (plain)", self._container, enter_network(self.netns)
        )

    def under(self, *options: str) -> Workload:
        """The same workload, its commands started with these options of slim-run, too."""
        prefix = (*self.prefix[:-1], *options, self.prefix[-1])
        return Workload(self._hosts, self.name, self._container, prefix)

    def start(self, *argv: str) -> Running:
        """A program that runs until the end of the module at the latest."""
        return self._hosts.start([*self.prefix, *argv], self.name)

    def probe(self, function: Callable[..., object], *arguments: object) -> Running:
        """Start a probe."""
        return self.start(*probe_argv(function, *arguments))

    def call(self, function: Callable[..., object], *arguments: object) -> Any:
        """Run a probe to its end; gives the last value that it reported."""
        output = self.run(*probe_argv(function, *arguments))
        return json.loads(output.splitlines()[-1])

    def run(self, *argv: str, timeout_s: float = PROBE_S) -> str:
        """Run a program to its end; gives its output, AssertionError if it fails."""
        done = self.try_run(*argv, timeout_s=timeout_s)
        assert done.returncode == 0, (
            f"{' '.join(argv)[:200]} in {self.name}: exit status {done.returncode}\n"
            f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        )
        return done.stdout

    def try_run(self, *argv: str, timeout_s: float = PROBE_S) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self.prefix, *argv],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            env=environment(),
            check=False,
        )


class TwoHosts:
    """The lab's hosts `a` and `b`, each with a slimd; a context manager."""

    def __init__(self, a: Settings = Settings(), b: Settings = Settings()) -> None:
        self._settings = {"a": a, "b": b}
        self._running: list[Running] = []
        self._daemons: list[Process] = []
        self._numbers = itertools.count()
        self._open = contextlib.ExitStack()
        self.lab = Lab()
        self.machines: dict[str, Machine] = {}
        self.slimds: dict[str, Slimd] = {}
        self.authority = Path()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.lab)
            self.authority = make_authority(self.lab.directory / "authority")
            for name, host in self.lab.hosts.items():
                machine = stack.enter_context(Machine(host))
                self.machines[name] = machine
                settings = self._settings[name]
                if not settings.is_absent:
                    slimd = ConfiguredSlimd(machine, self.authority, settings)
                    self.slimds[name] = stack.enter_context(slimd)
            stack.callback(self._stop_all)
            self._open = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._open.close()

    def _stop_all(self) -> None:
        for running in self._running:
            running.stop()
        for daemon in self._daemons:
            daemon.stop()

    # --- places -------------------------------------------------------------------------------

    def workload(self, host: str, name: str, **labels: str) -> Workload:
        """A new container on the host whose commands run under slim-run."""
        container = self._container(host)
        words = ["--run-dir", "/run/slim", "--workload", name, "--netns", container.netns]
        for key, value in labels.items():
            words += ["--label", f"{key}={value}"]
        prefix = (*self.machines[host].prefix, str(BIN / "slim-run"), *words, "--")
        return Workload(self, name, container, prefix)

    def plain(self, host: str, name: str = "plain") -> Workload:
        """A new container on the host that no slimd hears of."""
        container = self._container(host)
        return Workload(self, name, container, enter_network(container.netns))

    def _container(self, host: str) -> Container:
        container = self.lab.add_container(self.host(host))
        self.machines[host].show(container)
        return container

    def host(self, name: str) -> Host:
        return self.lab.hosts[name]

    def on_host(self, host: str, *argv: str) -> str:
        """Run a command in the host's own network namespace and mounts; gives its output."""
        return run(*self.machines[host].prefix, *argv)

    # --- running ------------------------------------------------------------------------------

    def start(self, argv: list[str], name: str) -> Running:
        errors = self.lab.directory / f"{name.split()[0]}-{next(self._numbers)}.err"
        running = Running(argv, errors)
        self._running.append(running)
        return running

    def probe_on_host(
        self, host: str, function: Callable[..., object], *arguments: object
    ) -> Running:
        """Start a probe in the host's own network namespace and mounts."""
        argv = [*self.machines[host].prefix, *probe_argv(function, *arguments)]
        return self.start(argv, f"host-{host}")

    def start_slimd(self, host: str) -> Process:
        """slimd once more, after it ended; waits until it answers."""
        argv = [*self.machines[host].prefix, str(BIN / "slimd")]
        log = self.host(host).directory / f"slimd-{next(self._numbers)}.log"
        process = Process(f"slimd of host {host}", [*argv, "--config", "/etc/slim/slimd.toml"], log)
        self._daemons.append(process)
        process.wait_until(lambda: self.answers(host), 15)
        return process

    def directory(self, name: str) -> Path:
        """A new directory that everybody may enter."""
        path = self.lab.directory / f"{name}-{next(self._numbers)}"
        path.mkdir(mode=0o755)
        return path

    # --- slimd --------------------------------------------------------------------------------

    def run_dir(self, host: str) -> Path:
        """Where we see the slimd's sockets."""
        return self.machines[host].path("/run/slim")

    def answers(self, host: str) -> bool:
        try:
            self.status(host)
        except ControlError:
            return False
        return True

    def status(self, host: str) -> messages.Status:
        return client.ask(self.run_dir(host), messages.GetStatus(), messages.Status)

    def pid(self, host: str, role: str) -> int:
        """Process id of control, traps or keeper."""
        return next(each.pid for each in self.status(host).processes if each.role == role)

    def rows(self, host: str, direction: str = "", *, to: str = "") -> list[messages.Connection]:
        """slimd's connections; `to` is an overlay peer, address or [address]:port or part of it."""
        answer = client.ask(self.run_dir(host), messages.GetConnections(), messages.Connections)
        return [
            row
            for row in answer.connections
            if direction in ("", row.direction) and to in row.overlay_peer
        ]

    def row(self, host: str, local: str) -> messages.Connection:
        """The one connection with that overlay address and port at this end."""

        def find() -> list[messages.Connection]:
            rows = self.rows(host, "out") + self.rows(host, "in")
            return [row for row in rows if row.overlay_local == local]

        return eventually(find, f"a connection of {local} in the table of host {host}")[0]

    def log(self, host: str) -> str:
        return (self.host(host).directory / "slimd.log").read_text(errors="replace")


def environment() -> dict[str, str]:
    """Of probes and programs."""
    # Programs of the system's administrator are not on every user's PATH.
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin:/usr/local/go/bin"
    modules = os.pathsep.join(filter(None, (str(TESTS), os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PATH": path, "PYTHONPATH": modules, "LC_ALL": "C"}


def probe_argv(function: Callable[..., object], *arguments: object) -> list[str]:
    """The command that runs a probe; PYTHONPATH names its package's directory."""
    module = inspect.getmodule(function)
    assert module is not None
    assert module.__name__.startswith("support.probes."), module.__name__
    words = [module.__name__, function.__name__, json.dumps(arguments)]
    return [sys.executable, "-m", "support.probes", *words]
