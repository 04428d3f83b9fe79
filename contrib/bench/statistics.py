"""Ratios of paired rounds: their median, how sure it is, and what that says about a bar. Pure.

Rounds are pairs because the machine changes under us: what is fast or slow in one round is so for
all contenders, and cancels in the ratio. The interval is the percentile bootstrap of the median
(Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13), with a fixed seed, so
that the same rounds always give the same interval.
"""

from __future__ import annotations

import random
import statistics
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

CONFIDENCE = 0.95
RESAMPLES = 4000
SEED = 20190226
MAX_WIDTH = 0.02
FEWEST_ROUNDS = 5


class Verdict(StrEnum):
    HOLDS = "holds"
    FAILS = "fails"
    UNDECIDED = "undecided"


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """The median of the ratios and its 95 % interval, both ends included."""

    median: float
    low: float
    high: float
    rounds: int

    @property
    def width(self) -> float:
        """Of the interval, relative to the median."""
        return (self.high - self.low) / self.median

    def is_narrow(self, max_width: float = MAX_WIDTH) -> bool:
        # One round, or two that agree by chance, say nothing about their spread.
        return self.rounds > 2 and self.width < max_width


def paired_ratios(numerators: Sequence[float], denominators: Sequence[float]) -> list[float]:
    """Ratio of each round; ValueError if the rounds do not pair or a value is not positive."""
    if len(numerators) != len(denominators):
        raise ValueError(f"{len(numerators)} rounds against {len(denominators)}")
    if any(value <= 0 for value in (*numerators, *denominators)):
        raise ValueError("a ratio needs positive values")
    return [above / below for above, below in zip(numerators, denominators, strict=True)]


def estimate(
    ratios: Sequence[float],
    *,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> Estimate:
    """Median and interval of the ratios; ValueError if there are none."""
    if not ratios:
        raise ValueError("there are no rounds")
    generator = random.Random(seed)
    count = len(ratios)
    medians = sorted(
        statistics.median(generator.choices(ratios, k=count)) for _ in range(resamples)
    )
    cut = int((1 - confidence) / 2 * resamples)
    return Estimate(
        median=statistics.median(ratios),
        low=medians[cut],
        high=medians[-1 - cut],
        rounds=count,
    )


def judge(result: Estimate, at_least: float) -> Verdict:
    """Whether the ratio is at least the bar: undecided if the interval holds the bar."""
    if result.rounds < FEWEST_ROUNDS:
        # So few agree by chance.
        return Verdict.UNDECIDED
    if result.low >= at_least:
        return Verdict.HOLDS
    if result.high < at_least:
        return Verdict.FAILS
    return Verdict.UNDECIDED
