"""What a host has for itself besides its network: /run, /etc and parts of /var.

Two slimds, and what they start, must not meet in one file system. A process that sleeps holds the
mount namespace; it dies with us, and the mounts with it.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Self

from lab.commands import run
from lab.processes import Process

if TYPE_CHECKING:
    from types import TracebackType

    from lab.hosts import Container, Host

REPOSITORY = Path(__file__).resolve().parents[2]
PRIVATE = (Path("/run"), Path("/etc"), Path("/var/lib"), Path("/var/log"))
READY_S = 10.0


class Machine:
    """A host with files of its own; a context manager. `prefix` enters it."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self._root = host.directory / "root"
        self._holder: Process | None = None

    @property
    def prefix(self) -> tuple[str, ...]:
        """Words that enter the host's mounts and its network."""
        assert self._holder is not None, "enter the Machine first"
        mounts = f"--mount=/proc/{self._holder.pid}/ns/mnt"
        return ("nsenter", mounts, f"--net=/run/netns/{self.host.netns}", "--")

    def path(self, inside: str) -> Path:
        """Where we see a file that the host sees below one of its private directories."""
        return self._root / inside.lstrip("/")

    def __enter__(self) -> Self:
        private = [path for path in PRIVATE if not _holds_ourselves(path)]
        self._fill(private)
        mounts = [f"mount --bind {self.path(str(path))} {path}" for path in private]
        ready = self.path("/run/ready")
        script = [*mounts, "touch /run/ready", "exec setpriv --pdeathsig KILL sleep infinity"]
        argv = ["unshare", "--mount", "sh", "-ec", "; ".join(script)]
        self._holder = Process(f"host {self.host.name}", argv, self.host.directory / "mounts.log")
        try:
            self._holder.wait_until(ready.exists, READY_S)
            for container in self.host.containers:
                self.show(container)
        except BaseException:
            self._holder.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._holder is not None:
            self._holder.stop()

    def show(self, container: Container) -> None:
        """Give the container's namespace its name on this host; others stay unknown here."""
        named = Path("/run/netns") / container.netns
        self.path(str(named)).touch()
        # The host cannot see the namespace's name with us, so we open it (fd 9). mount(8) must
        # leave that to the kernel: as a name it would be the very file that is mounted over.
        mount = ("mount", "--no-canonicalize", "--bind", "/proc/self/fd/9", str(named))
        run("sh", "-ec", f"exec 9<{named}; exec {' '.join((*self.prefix, *mount))}")

    def _fill(self, private: list[Path]) -> None:
        for path in private:
            inside = self.path(str(path))
            inside.parent.mkdir(parents=True, exist_ok=True)
            if path == Path("/etc"):
                run("cp", "--archive", str(path), str(inside))
            else:
                inside.mkdir()
        self.path("/run/netns").mkdir()
        self.path("/run/lock").mkdir(mode=0o1777)


def _holds_ourselves(directory: Path) -> bool:
    """Whether this program or its interpreter lie below the directory."""
    ours = (REPOSITORY, Path(sys.prefix), Path(os.path.realpath(sys.executable)))
    return any(path.is_relative_to(directory) for path in ours)
