"""Where a guard keeps things: its cgroups, and its pins in bpffs. Both outlive slimd.

CGROUP2/slim-INSTANCE          slimd itself (a threaded domain)
CGROUP2/slim-INSTANCE/guard    the programs are attached here; threaded
.../guard/w-NUMBER             one per workload: the maker's thread moves here to make sockets
BPFFS/slim-INSTANCE/v1         maps/ and links/, by the version of their layout
"""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from slim.broker.errors import KernelFeatureMissing, SlimError
from slim.broker.guard.layouts import LAYOUT
from slim.broker.kernel import bpf, features

BPFFS = Path("/sys/fs/bpf")
PRIVATE_BPFFS = Path("/run/slim-bpf")
"""Mounted by Slim itself where /sys/fs/bpf is not a BPF file system."""
INSTANCE = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    domain: Path
    pins: Path

    @property
    def attached(self) -> Path:
        return self.domain / "guard"

    @property
    def versioned(self) -> Path:
        return self.pins / f"v{LAYOUT}"

    @property
    def maps(self) -> Path:
        return self.versioned / "maps"

    @property
    def links(self) -> Path:
        return self.versioned / "links"

    def workload(self, number: int) -> Path:
        return self.attached / f"w-{number}"

    def workloads(self) -> dict[int, Path]:
        """Those that have a cgroup, by number."""
        return {
            int(path.name.removeprefix("w-")): path
            for path in self.attached.glob("w-*")
            if path.name.removeprefix("w-").isdecimal()
        }


def instance_of(host: str, host_netns: int) -> str:
    """The instance of the slimd of a host, by the name in its configuration.

    And by its network namespace's cookie: a machine may play several hosts, of the same name too.
    """
    name = re.sub(r"[^a-z0-9]+", "-", host.lower()).strip("-")
    return f"{name[:16].strip('-')}-{host_netns:x}"[:32].strip("-")


def find_places(instance: str) -> Places:
    """The places of one slimd on this machine; makes nothing."""
    if INSTANCE.fullmatch(instance) is None:
        raise SlimError(
            f"{instance!r} cannot name a guard",
            hint="lower case letters, digits and hyphens, at most 32",
        )
    mount = features.cgroup2_mount()
    if mount is None:
        raise KernelFeatureMissing(
            "cgroup v2 is not mounted",
            hint="mount -t cgroup2 none /sys/fs/cgroup/unified (beside cgroup v1 does as well)",
        )
    bpffs = BPFFS if bpf.is_bpffs(BPFFS) else PRIVATE_BPFFS
    return Places(domain=Path(mount, f"slim-{instance}"), pins=bpffs / f"slim-{instance}")


def make_places(places: Places) -> None:
    """Make the directories, and move this process into the domain; harmless when they are there."""
    if not bpf.is_bpffs(places.pins.parent):
        bpf.mount_bpffs(places.pins.parent)
    for directory in (places.maps, places.links):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    places.domain.mkdir(exist_ok=True)
    # A thread moves only between cgroups of its process's domain, so the whole process comes.
    write(places.domain / "cgroup.procs", str(os.getpid()))
    make_threaded(places.attached)


def make_threaded(cgroup: Path) -> None:
    """A cgroup below a domain that holds threads (cgroup v2, Linux 4.14)."""
    cgroup.mkdir(exist_ok=True)
    write(cgroup / "cgroup.type", "threaded")


def remove_workloads(places: Places) -> int:
    """Take the workloads' cgroups away; how many of them sockets still hold.

    cgroup.stat counts removed cgroups that something holds (Linux 4.14): also by sockets that are
    neither connected nor listening, which sock_diag does not show.
    """
    if not places.attached.is_dir():
        return 0
    for cgroup in places.workloads().values():
        _remove_cgroup(cgroup)
    for line in (places.attached / "cgroup.stat").read_text().splitlines():
        name, _, value = line.partition(" ")
        if name == "nr_dying_descendants":
            return int(value)
    return 0


def remove_places(places: Places) -> None:
    """Take pins and cgroups away. From then on nothing confines a socket that still lives."""
    for directory in (places.links, places.maps):
        if directory.is_dir():
            for pin in directory.iterdir():
                pin.unlink()
            directory.rmdir()
    for directory in (places.versioned, places.pins):
        with contextlib.suppress(FileNotFoundError):
            directory.rmdir()
    for cgroup in (places.attached, places.domain):
        _remove_cgroup(cgroup)


def _remove_cgroup(cgroup: Path) -> None:
    try:
        cgroup.rmdir()
    except FileNotFoundError:
        return
    except OSError as error:
        raise SlimError(
            f"cannot remove {cgroup}: {error.strerror}", hint="stop slimd and its keeper first"
        ) from None


def write(path: Path, text: str) -> None:
    """One write(2) to a file of the kernel; SlimError names it."""
    try:
        path.write_text(text)
    except OSError as error:
        raise SlimError(
            f"cannot write {text} to {path}: {error.strerror}",
            hint="slimd needs cgroup v2 writable; under systemd, Delegate=yes",
        ) from None
