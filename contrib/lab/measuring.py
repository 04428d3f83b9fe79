"""One measurement: a load against a running server, with the processor time of its middle.

The window leaves the start-up of the load (slim-run is Python) and its end out; the load's own
result covers all of its run.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from statistics import fmean
from typing import TYPE_CHECKING

from lab.accounting import CpuUse, between, take_snapshot
from lab.processes import Process
from slim.broker.errors import SlimError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from lab.loads import Load
    from lab.places import Site
    from lab.programs import Server

WINDOW_FROM = 0.3
WINDOW_TO = 0.9
"""Parts of the load's duration."""
GRACE_S = 30.0
"""How much longer than asked a load may take."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What one load showed."""

    rate: float
    cpu: CpuUse
    extra: dict[str, float] = field(default_factory=dict)

    def cpu_us_per_operation(self) -> float:
        """Microseconds of the whole machine, soft interrupts included."""
        return self.cpu.machine / self.rate * 1e6

    def processes_us_per_operation(self) -> float:
        """Microseconds of server, load and slimd alone: other work on the machine is no part."""
        return self.cpu.processes / self.rate * 1e6

    def parts_us_per_operation(self) -> dict[str, float]:
        """Microseconds by part of the experiment."""
        return {name: use / self.rate * 1e6 for name, use in self.cpu.parts.items()}


def average(samples: Sequence[Sample]) -> Sample:
    """One sample out of several of the same load; not empty."""
    return Sample(
        rate=fmean(sample.rate for sample in samples),
        cpu=CpuUse(
            seconds=sum(sample.cpu.seconds for sample in samples),
            machine=fmean(sample.cpu.machine for sample in samples),
            softirq=fmean(sample.cpu.softirq for sample in samples),
            steal=fmean(sample.cpu.steal for sample in samples),
            parts=_average_values([sample.cpu.parts for sample in samples]),
        ),
        extra=_average_values([sample.extra for sample in samples]),
    )


def _average_values(mappings: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """By name, over those that have it."""
    names = {name: None for mapping in mappings for name in mapping}
    return {name: fmean(mapping[name] for mapping in mappings if name in mapping) for name in names}


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """How loads are run: for how long, on which core if on one, and who else's time counts."""

    seconds: int
    core: int | None = None
    brokers: Mapping[str, int] = field(default_factory=dict)
    """Process ids of slimd's processes by name."""


def measure(
    site: Site,
    server: Server,
    load: Load,
    log: Path,
    conditions: Conditions,
    during: Callable[[], None] | None = None,
) -> Sample:
    """Run the load to its end; `during` is called in its middle. SlimError if the load fails."""
    command = site.client.command(load.argv, conditions.core)
    tool = f"{load.argv[0].rpartition('/')[2]} in {site.client.name}"
    started = time.monotonic()
    process = Process(tool, command, log)
    try:
        trees = {"server": server.process.pid, "load": process.pid}
        process.wait(conditions.seconds * WINDOW_FROM)
        before = take_snapshot(trees, conditions.brokers)
        if during is not None:
            during()
        process.wait(conditions.seconds * WINDOW_TO - (time.monotonic() - started))
        after = take_snapshot(trees, conditions.brokers)
        status = process.wait(conditions.seconds + GRACE_S)
        if server.process.status() is not None:
            raise SlimError(f"{server.process.name} ended under load: {server.process.tail()}")
        if status is None:
            raise SlimError(f"{tool} did not end: {process.tail()}")
        if status != 0:
            raise SlimError(f"{tool}: exit status {status}: {process.tail()}")
        result = load.parse(log.read_text(errors="replace"))
    finally:
        process.stop()
    return Sample(rate=result.rate, cpu=between(before, after), extra=result.extra)
