"""Probes and programs that a resident process forks in a container (probes/resident.py).

A `Resident` starts them as two_hosts.Workload does, in milliseconds and not in the third of a
second that an interpreter under slim-run takes: what makes hundreds of cases bearable.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import os
import select
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any, Self

from support.two_hosts import environment

if TYPE_CHECKING:
    import signal
    from collections.abc import Callable
    from pathlib import Path
    from types import TracebackType

    from support.two_hosts import Workload

RESULT_S = 30.0
MAX_BYTES = 1 << 16


class Forked:
    """One probe or program; its output is read line by line, its input written."""

    def __init__(self, resident: Resident, request: dict[str, Any], errors: Path) -> None:
        self._resident = resident
        self._errors = errors
        stdin, self._stdin = os.pipe()
        self._stdout, stdout = os.pipe()
        stderr = os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            self.pid: int = resident.ask(request, [stdin, stdout, stderr])["pid"]
        finally:
            for fd in (stdin, stdout, stderr):
                os.close(fd)
        self._rest = b""
        self._status: int | None = None

    def line(self) -> str:
        """The next line of output; AssertionError with what was said if none comes."""
        deadline = time.monotonic() + RESULT_S
        while b"\n" not in self._rest:
            left = deadline - time.monotonic()
            ready = select.select([self._stdout], [], [], max(left, 0))[0]
            chunk = os.read(self._stdout, 1 << 16) if ready else b""
            if not chunk:
                status = self.end(kill=not ready)
                why = f"ended with {status}" if ready else f"said nothing for {RESULT_S:g} s"
                raise AssertionError(f"the probe {why}: {self.errors()}")
            self._rest += chunk
        line, _, self._rest = self._rest.partition(b"\n")
        return line.decode()

    def result(self) -> Any:
        """The next value that a probe reports."""
        return json.loads(self.line())

    def lines(self) -> list[str]:
        """The rest of the output, to its end; AssertionError if the exit status is not 0."""
        deadline = time.monotonic() + RESULT_S
        while True:
            left = deadline - time.monotonic()
            if not select.select([self._stdout], [], [], max(left, 0))[0]:
                self.end(kill=True)
                said = self._rest.decode(errors="replace")
                raise AssertionError(f"no end within {RESULT_S:g} s: {said} {self.errors()}")
            chunk = os.read(self._stdout, 1 << 16)
            if not chunk:
                break
            self._rest += chunk
        status = self.end(kill=False)
        said = self._rest.decode(errors="replace")
        assert status == 0, f"exit status {status}: {said} {self.errors()}"
        return said.splitlines()

    def errors(self) -> str:
        return self._errors.read_text(errors="replace")[-4000:]

    def tell(self, line: str) -> None:
        """Write a line to its standard input."""
        os.write(self._stdin, line.encode() + b"\n")

    def send_signal(self, number: signal.Signals) -> None:
        """To the process itself; it is not reaped before `end`."""
        os.kill(self.pid, number)

    def is_asleep(self) -> bool:
        """Whether it sleeps in a system call, held by slimd or in the kernel."""
        with open(f"/proc/{self.pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] == "S"

    def end(self, *, kill: bool = True) -> int:
        """Wait for its end, or kill it first; gives the exit status, as subprocess does."""
        if self._status is None:
            self._status = self._resident.ask({"end": self.pid, "kill": kill}, [])["status"]
            os.close(self._stdin)
            os.close(self._stdout)
        return self._status

    def stop(self) -> None:
        """Kill it and what it started; harmless if it has ended."""
        self.end(kill=True)


class Resident:
    """The resident process of one workload; a context manager that ends all that it forked."""

    def __init__(self, workload: Workload, directory: Path) -> None:
        self.workload = workload
        self.name = workload.name
        self.netns = workload.netns
        self.address4 = workload.address4
        self.address6 = workload.address6
        self._directory = directory
        self._forked: list[Forked] = []
        self._started = 0
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control.settimeout(2 * RESULT_S)
        argv = [*workload.prefix, sys.executable, "-m", "support.probes.resident"]
        with theirs, (directory / "resident.err").open("wb") as errors:
            self._popen = subprocess.Popen(
                argv,
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=errors,
                start_new_session=True,
                env=environment(),
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with contextlib.suppress(OSError, AssertionError):
            self.stop_after(0)
        self._control.close()
        try:
            self._popen.wait(5)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait(5)

    def address(self, version: int) -> str:
        return self.address4 if version == 4 else self.address6

    def probe(self, function: Callable[..., object], *arguments: object) -> Forked:
        """Start a probe."""
        module = inspect.getmodule(function)
        assert module is not None
        assert module.__name__.startswith("support.probes."), module.__name__
        named = {"module": module.__name__, "function": function.__name__}
        return self._fork({**named, "arguments": arguments})

    def call(self, function: Callable[..., object], *arguments: object) -> Any:
        """Run a probe to its end; gives the last value that it reported."""
        return json.loads(self.probe(function, *arguments).lines()[-1])

    def start(self, *argv: str) -> Forked:
        """Start a program."""
        return self._fork({"argv": argv})

    def run(self, *argv: str) -> list[str]:
        """Run a program to its end; gives the lines of its output."""
        return self.start(*argv).lines()

    @property
    def running(self) -> int:
        """A mark for stop_after."""
        return len(self._forked)

    def stop_after(self, mark: int) -> None:
        """End what was started since `running` was that number."""
        while len(self._forked) > mark:
            self._forked.pop().stop()

    def ask(self, request: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        """One request of the protocol; AssertionError if the resident has gone."""
        message = json.dumps(request).encode()
        if fds:
            socket.send_fds(self._control, [message], fds)
        else:
            self._control.send(message)
        answer = self._control.recv(MAX_BYTES)
        assert answer, f"the resident of {self.name} ended: {self._errors()}"
        found: dict[str, Any] = json.loads(answer)
        return found

    def _fork(self, request: dict[str, Any]) -> Forked:
        self._started += 1
        forked = Forked(self, request, self._directory / f"{self._started}.err")
        self._forked.append(forked)
        return forked

    def _errors(self) -> str:
        return (self._directory / "resident.err").read_text(errors="replace")[-4000:]
