"""What a scenario is: a program with its load, how it is placed on cores, and its bars."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lab.places import Contender
    from lab.programs import Program


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """Slim's rate is to be at least this part of the other's."""

    against: Contender
    at_least: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One row of the results. No bars: it is reported only."""

    title: str
    program: Program
    pinned: bool
    """Both ends and slimd on one core: for latency and set-up, where a wake-up of the other, idle
    core costs more than what is measured. Otherwise all cores, for throughput."""
    bars: tuple[Bar, ...] = ()
    proof: Program | None = None
    """What shows that Slim's fast path is used, where the program's own connections are too short
    to be seen; it must understand the same server."""

    @property
    def name(self) -> str:
        return self.program.name
