"""Long-lived children of the lab: each in a session of its own, its output in a file.

Whoever starts a Process owns it and calls `stop`. It is always ended by its id: while we have not
reaped a child nobody else can have its number.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from typing import TYPE_CHECKING

from slim.broker.errors import SlimError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

POLL_S = 0.02
LOG_TAIL_BYTES = 2000


class Process:
    """A running command; `log` gets what it prints."""

    def __init__(self, name: str, argv: Sequence[str], log: Path) -> None:
        self.name = name
        self.log = log
        with log.open("wb") as output:
            try:
                self._popen = subprocess.Popen(
                    argv,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            except FileNotFoundError:
                raise SlimError(f"cannot start {name}: {argv[0]} is not installed") from None

    @property
    def pid(self) -> int:
        return self._popen.pid

    def status(self) -> int | None:
        """Exit status, or None while it runs."""
        return self._popen.poll()

    def tail(self) -> str:
        """The end of what it printed."""
        with self.log.open("rb") as log:
            log.seek(max(0, self.log.stat().st_size - LOG_TAIL_BYTES))
            return log.read().decode(errors="replace").strip()

    def wait(self, timeout_s: float) -> int | None:
        """Exit status; None if it still runs after `timeout_s`."""
        try:
            return self._popen.wait(max(0.0, timeout_s))
        except subprocess.TimeoutExpired:
            return None

    def wait_until(self, ready: Callable[[], bool], timeout_s: float) -> None:
        """Poll until `ready`; SlimError with the log's end if it dies before or takes too long."""
        deadline = time.monotonic() + timeout_s
        while not ready():
            if self.status() is not None:
                raise SlimError(
                    f"{self.name} ended at its start, exit status {self.status()}: {self.tail()}"
                )
            if time.monotonic() > deadline:
                raise SlimError(f"{self.name} was not ready within {timeout_s:g} s: {self.tail()}")
            time.sleep(POLL_S)

    def stop(self, stop_signal: signal.Signals = signal.SIGTERM, timeout_s: float = 5.0) -> None:
        """End it and everything it started; harmless if it ended by itself."""
        if self.status() is None:
            family = descendants(self.pid)
            self._signal_group(stop_signal)
            if self.wait(timeout_s) is None:
                # Grandchildren may have left the process group; none of them can be recycled
                # numbers while their parents, which we have not reaped, are alive.
                for pid in family:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                self._signal_group(signal.SIGKILL)
        self._popen.wait()

    def _signal_group(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)


def descendants(root: int) -> list[int]:
    """Process ids of the root and all below it, parents first; from /proc/PID/stat."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            parent = _parent(int(name))
            if parent is not None:
                children.setdefault(parent, []).append(int(name))
    found = [root]
    for pid in found:
        found.extend(children.get(pid, []))
    return found


def _parent(pid: int) -> int | None:
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            # The name, in parentheses, may hold anything: proc(5).
            return int(stat.read().rpartition(b")")[2].split()[1])
    except OSError:
        return None


def is_listening(pid: int, port: int) -> bool:
    """Whether some socket in the network namespace of `pid` listens on the TCP port."""
    wanted = f":{port:04X}"
    for table in ("tcp", "tcp6"):
        try:
            with open(f"/proc/{pid}/net/{table}") as lines:
                for line in lines:
                    fields = line.split()
                    if fields[1].endswith(wanted) and fields[3] == "0A":
                        return True
        except OSError:
            continue
    return False
