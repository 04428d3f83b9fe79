"""Results for people (a markdown table) and for programs (one JSON line per sample)."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

import msgspec
from lab.places import Contender

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from bench.machine import Machine
    from bench.results import Results
    from bench.statistics import Estimate

NOTHING = "-"
PAIRS = (
    (Contender.SLIM, Contender.HOST),
    (Contender.SLIM, Contender.OVERLAY),
    (Contender.OVERLAY, Contender.HOST),
)
CRR_STEPS = ("socket", "connect", "exchange", "close")


class SampleLine(msgspec.Struct, frozen=True, kw_only=True):
    """One sample as a JSON line; times in seconds of processor per second of wall clock."""

    scenario: str
    contender: str
    round: int
    unit: str
    rate: float
    seconds: int
    machine: float
    softirq: float
    steal: float
    parts: dict[str, float]
    extra: dict[str, float]


def sample_lines(results: Results) -> list[bytes]:
    """All samples of a scenario, in the order of the rounds."""
    lines = [
        SampleLine(
            scenario=results.scenario.name,
            contender=contender,
            round=number,
            unit=results.scenario.program.unit,
            rate=sample.rate,
            seconds=results.seconds,
            machine=sample.cpu.machine,
            softirq=sample.cpu.softirq,
            steal=sample.cpu.steal,
            parts=sample.cpu.parts,
            extra=sample.extra,
        )
        for contender, samples in results.samples.items()
        for number, sample in enumerate(samples, start=1)
    ]
    lines.sort(key=lambda line: line.round)
    return [msgspec.json.encode(line) for line in lines]


def render_markdown(machine: Machine, everything: Sequence[Results]) -> str:
    """The whole report."""
    sections = [
        "# Benchmark",
        f"{machine}.",
        "Medians over rounds; ratios are medians of per-round ratios with their 95 % bootstrap "
        "interval. Rounds are added until that is narrower than 2 %; a bar is decided when all of "
        "it lies on one side.",
        "## Throughput",
        _table(
            ["", "unit", *Contender, *(f"{above} / {below}" for above, below in PAIRS), "rounds"],
            [_rate_row(results) for results in everything],
        ),
        "## Bars",
        _table(["", "Slim against", "at least", "ratio", "verdict"], _bar_rows(everything)),
        "## Processor time per operation",
        "Microseconds of server, load and slimd, with the network work that the kernel did in "
        "their time; for bulk per Gbit.",
        _table(
            ["", *Contender, *(f"{above} / {below}" for above, below in PAIRS)],
            [
                _cost_row(results, results.process_costs, results.process_cost_ratio)
                for results in everything
            ],
        ),
        "Microseconds of the whole machine, soft interrupts and whatever else ran included:",
        _table(
            ["", *Contender, *(f"{above} / {below}" for above, below in PAIRS)],
            [_cost_row(results, results.costs, results.cost_ratio) for results in everything],
        ),
    ]
    for results in everything:
        sections += _set_up_section(results)
    proofs = [
        f"- {results.scenario.title}: {results.proof}" for results in everything if results.proof
    ]
    if proofs:
        sections += ["## Fast path, by `slimctl connections` under load", "\n".join(proofs)]
    absences = list(absent_lines(everything))
    if absences:
        sections += ["## Not measured", "\n".join(f"- {line}" for line in absences)]
    return "\n\n".join(sections) + "\n"


def absent_lines(everything: Iterable[Results]) -> Iterable[str]:
    """Which contender could not run in which scenario, and why."""
    for results in everything:
        for contender, reason in results.absent.items():
            yield f"{results.scenario.title}, {contender}: {' '.join(reason.split())}"


def format_rate(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 1000 else f"{rate:.3g}"


def format_estimate(estimate: Estimate | None) -> str:
    if estimate is None:
        return NOTHING
    return f"{estimate.median:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None


def _rate_row(results: Results) -> list[str]:
    rates = [_median(results.rates(contender)) for contender in Contender]
    return [
        results.scenario.title,
        results.scenario.program.unit,
        *(NOTHING if rate is None else format_rate(rate) for rate in rates),
        *(format_estimate(results.rate_ratio(*pair)) for pair in PAIRS),
        str(results.rounds),
    ]


def _cost_row(
    results: Results,
    costs_of: Callable[[Contender], list[float]],
    ratio_of: Callable[[Contender, Contender], Estimate | None],
) -> list[str]:
    costs = [_median(costs_of(contender)) for contender in Contender]
    return [
        results.scenario.title,
        *(NOTHING if cost is None else format_rate(cost) for cost in costs),
        *(format_estimate(ratio_of(*pair)) for pair in PAIRS),
    ]


def _bar_rows(everything: Iterable[Results]) -> list[list[str]]:
    return [
        [
            results.scenario.title,
            str(bar.against),
            f"{bar.at_least:.2f}",
            format_estimate(results.rate_ratio(Contender.SLIM, bar.against)),
            str(results.verdict(bar) or "not measured"),
        ]
        for results in everything
        for bar in results.scenario.bars
    ]


def _set_up_section(results: Results) -> list[str]:
    """Where the time of a connection goes: by step of the program, and by process."""
    if not any(
        f"{step}_p50_us" in sample.extra
        for samples in results.samples.values()
        for sample in samples
        for step in CRR_STEPS
    ):
        return []
    ran = [contender for contender in Contender if results.samples.get(contender)]
    steps = [
        [step or "all", *(_extra(results, each, f"{step}_" if step else "") for each in ran)]
        for step in (*CRR_STEPS, "")
    ]
    parts = sorted(
        {name for each in ran for sample in results.samples[each] for name in sample.cpu.parts}
    )
    shares = [[name, *(_part(results, each, name) for each in ran)] for name in parts]
    return [
        f"## {results.scenario.title}: where the time goes",
        "By step of the client, median microseconds:",
        _table(["step", *ran], steps),
        "By process, microseconds of processor per connection (the kernel's network work is in "
        "the time of the process that caused it):",
        _table(["process", *ran], shares),
    ]


def _extra(results: Results, contender: Contender, prefix: str) -> str:
    name = f"{prefix}p50_us"
    values = [sample.extra[name] for sample in results.samples[contender] if name in sample.extra]
    return f"{statistics.median(values):.1f}" if values else NOTHING


def _part(results: Results, contender: Contender, part: str) -> str:
    values = [
        sample.parts_us_per_operation().get(part, 0.0) for sample in results.samples[contender]
    ]
    return f"{statistics.median(values):.1f}"


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
