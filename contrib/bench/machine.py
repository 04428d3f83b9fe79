"""What the results depend on besides Slim: kernel, cores, offloads of the underlay."""

from __future__ import annotations

import os
import platform
from typing import TYPE_CHECKING

import msgspec
from lab.commands import find_missing, run

if TYPE_CHECKING:
    from lab.testbed import Testbed

OFFLOADS = {
    "tcp-segmentation-offload": "tso",
    "generic-segmentation-offload": "gso",
    "generic-receive-offload": "gro",
    "tx-udp_tnl-segmentation": "tunnel",
}


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """The first line of the raw results."""

    kernel: str
    cores: int
    offloads: str

    def __str__(self) -> str:
        return (
            f"Kernel {self.kernel}, {self.cores} cores, two hosts as network namespaces joined by "
            f"veth (offloads: {self.offloads}), overlay: VXLAN"
        )


def describe_machine(bed: Testbed) -> Machine:
    host = next(iter(bed.lab.hosts.values()))
    return Machine(
        kernel=platform.release(),
        cores=len(os.sched_getaffinity(0)),
        offloads=_read_offloads(host.place().prefix),
    )


def _read_offloads(prefix: tuple[str, ...]) -> str:
    if find_missing(("ethtool",)):
        return "unknown, ethtool is not installed"
    lines = run(*prefix, "ethtool", "--show-features", "eth0").splitlines()
    features = dict(line.strip().split(": ", 1) for line in lines if ": " in line)
    return ", ".join(
        f"{short} {features[name].split()[0]}"
        for name, short in OFFLOADS.items()
        if name in features
    )
