"""Processor time over a window: of processes, to the nanosecond, and of the whole machine.

Soft interrupts are work of the network that no process started, but that the kernel mostly does in
the time of whichever process runs; so both views are kept. Sources: proc(5) for /proc/stat,
Documentation/scheduler/sched-stats.rst for schedstat.
"""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lab.processes import descendants

if TYPE_CHECKING:
    from collections.abc import Mapping

TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Counters at one moment, seconds since they began."""

    at: float
    idle_s: float
    softirq_s: float
    steal_s: float
    parts: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuUse:
    """Processor seconds spent per second of a window: 1.0 is one core, busy all the time."""

    seconds: float
    """Length of the window."""
    machine: float
    """All cores, everything but idle time and what the hypervisor stole."""
    softirq: float
    steal: float
    parts: dict[str, float]
    """By part of the experiment: server, load, and the processes of slimd."""

    @property
    def processes(self) -> float:
        return sum(self.parts.values())


def take_snapshot(trees: Mapping[str, int], processes: Mapping[str, int]) -> Snapshot:
    """Read all counters, of `trees` with all that the process started, of `processes` without."""
    softirq, steal, idle = _machine()
    return Snapshot(
        at=time.monotonic(),
        idle_s=idle,
        softirq_s=softirq,
        steal_s=steal,
        parts={
            name: sum(_runtime_s(each) for each in descendants(root))
            for name, root in trees.items()
        }
        | {name: _runtime_s(pid) for name, pid in processes.items()},
    )


def between(before: Snapshot, after: Snapshot) -> CpuUse:
    """What was used from one snapshot to the other."""
    seconds = after.at - before.at
    idle = after.idle_s - before.idle_s
    steal = after.steal_s - before.steal_s
    return CpuUse(
        seconds=seconds,
        machine=max(0.0, _cores() - (idle + steal) / seconds),
        softirq=(after.softirq_s - before.softirq_s) / seconds,
        steal=steal / seconds,
        parts={
            # A process that ended in between took its count with it.
            name: max(0.0, value - before.parts.get(name, 0.0)) / seconds
            for name, value in after.parts.items()
        },
    )


def _cores() -> int:
    return os.cpu_count() or 1


def _machine() -> tuple[float, float, float]:
    """Soft interrupt, stolen and idle (with waiting for disks) time of all cores."""
    with open("/proc/stat") as stat:
        fields = [int(field) / TICKS_PER_S for field in stat.readline().split()[1:]]
    return fields[6], fields[7], fields[3] + fields[4]


def _runtime_s(pid: int) -> float:
    """Time on a processor of all threads of a process; 0 if it is gone."""
    total = 0
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError), open(f"/proc/{pid}/task/{thread}/schedstat") as text:
                total += int(text.read().split()[0])
    return total / 1e9
