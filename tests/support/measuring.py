"""Counters of the kernel: what went over which link, what a process holds."""

from __future__ import annotations

import contextlib
import json
import os
from typing import TYPE_CHECKING, NamedTuple

from lab.commands import run

if TYPE_CHECKING:
    from support.two_hosts import TwoHosts


def link_packets(netns: str, link: str) -> int:
    """Packets received and sent."""
    (row,) = json.loads(run("ip", "-n", netns, "-s", "-j", "link", "show", "dev", link))
    stats = row["stats64"]
    return int(stats["rx"]["packets"]) + int(stats["tx"]["packets"])


def vxlan_packets(hosts: TwoHosts) -> int:
    """What went over host a's overlay link."""
    return link_packets(hosts.host("a").netns, "vxlan0")


class Holdings(NamedTuple):
    """What a process holds."""

    fds: int
    threads: int
    anonymous_kib: int
    """Resident memory that is its own, without the tables that it shares (RssAnon)."""


def namespaces_held(pid: int) -> int:
    """How many of its fds are network (or other) namespaces."""
    namespaces = os.stat("/proc/self/ns/net").st_dev
    count = 0
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            count += os.stat(f"/proc/{pid}/fd/{name}").st_dev == namespaces
    return count


def holdings(pid: int) -> Holdings:
    """From proc(5)."""
    with open(f"/proc/{pid}/status") as lines:
        fields = dict(line.split(":", 1) for line in lines)
    return Holdings(
        fds=len(os.listdir(f"/proc/{pid}/fd")),
        threads=int(fields["Threads"]),
        anonymous_kib=int(fields["RssAnon"].split()[0]),
    )
