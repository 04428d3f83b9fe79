"""Killing slimd's processes, and bringing them back as a service manager would."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

from support.polling import eventually

if TYPE_CHECKING:
    from support.two_hosts import TwoHosts


def kill(hosts: TwoHosts, host: str, role: str) -> None:
    """SIGKILL, and wait until it is gone."""
    pid = hosts.pid(host, role)
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: not is_running(pid), f"{role} of host {host} is gone")


def is_running(pid: int) -> bool:
    """False for a zombie too."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        # Gone, or going between open and read.
        return False


def crash(hosts: TwoHosts, roles: tuple[str, ...]) -> None:
    """Kill these on both hosts, and bring control back."""
    keepers = {host: hosts.pid(host, "keeper") for host in ("a", "b")}
    for host in ("a", "b"):
        # Control last: it is who tells the process ids.
        for role in sorted(roles, reverse=True):
            kill(hosts, host, role)
    for host in ("a", "b"):
        if "control" in roles:
            hosts.start_slimd(host)
        wait_until_whole(hosts, host)
        assert hosts.pid(host, "keeper") == keepers[host]


def wait_until_whole(hosts: TwoHosts, host: str) -> None:
    def is_whole() -> bool:
        if not hosts.answers(host):
            return False
        status = hosts.status(host)
        return all(process.pid and is_running(process.pid) for process in status.processes)

    eventually(is_whole, f"all of slimd runs on host {host}", 15)
