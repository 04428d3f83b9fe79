"""What the rounds of one scenario showed, as samples and as ratios. No effects."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lab.places import Contender

from bench.statistics import Estimate, Verdict, estimate, judge, paired_ratios

if TYPE_CHECKING:
    from lab.measuring import Sample
    from lab.proof import Proof

    from bench.scenario import Bar, Scenario


@dataclass(slots=True, kw_only=True)
class Results:
    """All complete rounds; every contender that ran has as many samples as there were rounds."""

    scenario: Scenario
    seconds: int
    """Of one load."""
    rounds: int = 0
    samples: dict[Contender, list[Sample]] = field(default_factory=dict)
    absent: dict[Contender, str] = field(default_factory=dict)
    """Contenders that were asked for and could not run: the reason."""
    proof: Proof | None = None

    def add_round(self, samples: dict[Contender, Sample]) -> None:
        self.rounds += 1
        for contender, sample in samples.items():
            self.samples.setdefault(contender, []).append(sample)

    def drop(self, contender: Contender, reason: str) -> None:
        """The contender failed; what it showed before has no pair any more."""
        self.absent[contender] = reason
        self.samples.pop(contender, None)

    def rates(self, contender: Contender) -> list[float]:
        return [sample.rate for sample in self.samples.get(contender, [])]

    def costs(self, contender: Contender) -> list[float]:
        """Processor microseconds of the whole machine per operation."""
        return [sample.cpu_us_per_operation() for sample in self.samples.get(contender, [])]

    def process_costs(self, contender: Contender) -> list[float]:
        """Processor microseconds of server, load and slimd per operation."""
        return [sample.processes_us_per_operation() for sample in self.samples.get(contender, [])]

    def rate_ratio(self, above: Contender, below: Contender) -> Estimate | None:
        """None if one of them did not run."""
        return _ratio(self.rates(above), self.rates(below))

    def cost_ratio(self, above: Contender, below: Contender) -> Estimate | None:
        """None if one of them did not run."""
        return _ratio(self.costs(above), self.costs(below))

    def process_cost_ratio(self, above: Contender, below: Contender) -> Estimate | None:
        """None if one of them did not run."""
        return _ratio(self.process_costs(above), self.process_costs(below))

    def verdict(self, bar: Bar) -> Verdict | None:
        """None if Slim or the other did not run."""
        ratio = self.rate_ratio(Contender.SLIM, bar.against)
        return None if ratio is None else judge(ratio, bar.at_least)

    def is_settled(self) -> bool:
        """Whether the interval of every ratio that has a bar is narrow enough.

        Without bars, or without Slim, it is the overlay's ratio to the host network that counts.
        """
        pairs = [(Contender.SLIM, bar.against) for bar in self.scenario.bars]
        if not pairs or Contender.SLIM not in self.samples:
            pairs = [(Contender.OVERLAY, Contender.HOST)]
        ratios = [self.rate_ratio(*pair) for pair in pairs]
        return all(ratio is None or ratio.is_narrow() for ratio in ratios)


def _ratio(above: list[float], below: list[float]) -> Estimate | None:
    if not above or not below:
        return None
    return estimate(paired_ratios(above, below))
