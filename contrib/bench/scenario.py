"""What a scenario is: a program with its load, how it is placed on cores, and its bars."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lab.places import Contender
    from lab.programs import Program


class Placement(Enum):
    """Who runs where; left to the scheduler, that is most of what rounds differ by."""

    ONE_CORE = auto()
    """Both ends and slimd together: for latency and set-up, where a wake-up of the other, idle
    core costs more than what is measured, and for programs, whose rate then tells the cost of an
    operation."""
    CORE_EACH = auto()
    """The server on one core, the load on another, slimd on any: for one big stream."""


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
    placement: Placement
    bars: tuple[Bar, ...] = ()
    proof: Program | None = None
    """What shows that Slim's fast path is used, where the program's own connections are too short
    to be seen; it must understand the same server."""

    @property
    def name(self) -> str:
        return self.program.name
