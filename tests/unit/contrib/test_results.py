"""Rounds become ratios, verdicts and a report."""

from __future__ import annotations

import msgspec
import pytest
from bench.echo import Echo
from bench.machine import Machine
from bench.report import absent_lines, render_markdown, sample_lines
from bench.results import Results
from bench.scenario import Bar, Placement, Scenario
from bench.statistics import Verdict
from lab.accounting import CpuUse, Snapshot, between
from lab.measuring import Sample, average
from lab.places import Contender
from lab.proof import count_paths
from lab.slimd import ConnectionRow

SCENARIO = Scenario(
    title="echo",
    program=Echo("rr", "echo", "round trips/s"),
    placement=Placement.ONE_CORE,
    bars=(Bar(against=Contender.OVERLAY, at_least=1.3),),
)
MACHINE = Machine(kernel="6.1", cores=2, offloads="tso on")


def make_sample(rate: float, *, machine: float = 1.0) -> Sample:
    cpu = CpuUse(seconds=1.0, machine=machine, softirq=0.0, steal=0.0, parts={"server": 0.5})
    return Sample(rate=rate, cpu=cpu, extra={"connect_p50_us": 30.0})


def make_results(host: float, overlay: float, slim: float, *, rounds: int = 5) -> Results:
    results = Results(scenario=SCENARIO, seconds=1)
    for _ in range(rounds):
        results.add_round(
            {
                Contender.HOST: make_sample(host),
                Contender.OVERLAY: make_sample(overlay, machine=2.0),
                Contender.SLIM: make_sample(slim),
            }
        )
    return results


def test_bar_is_judged_by_the_ratio_to_its_contender() -> None:
    assert make_results(100, 50, 90).verdict(SCENARIO.bars[0]) is Verdict.HOLDS
    assert make_results(100, 80, 90).verdict(SCENARIO.bars[0]) is Verdict.FAILS


def test_cost_per_operation_is_machine_time_by_rate() -> None:
    results = make_results(100, 50, 100)
    assert results.costs(Contender.OVERLAY) == [pytest.approx(2.0 / 50 * 1e6)] * 5
    ratio = results.cost_ratio(Contender.SLIM, Contender.OVERLAY)
    assert ratio is not None
    assert ratio.median == pytest.approx(0.25)


def test_cost_of_processes_leaves_the_rest_of_the_machine_out() -> None:
    results = make_results(100, 50, 100)
    assert results.process_costs(Contender.OVERLAY) == [pytest.approx(0.5 / 50 * 1e6)] * 5
    ratio = results.process_cost_ratio(Contender.SLIM, Contender.OVERLAY)
    assert ratio is not None
    assert ratio.median == pytest.approx(0.5)


def test_equal_rounds_are_settled_and_scattered_ones_are_not() -> None:
    assert make_results(100, 50, 90).is_settled()
    results = make_results(100, 50, 90, rounds=4)
    results.add_round(
        {
            contender: make_sample(rate)
            for contender, rate in zip(Contender, (100.0, 50.0, 30.0), strict=True)
        }
    )
    results.add_round(
        {
            contender: make_sample(rate)
            for contender, rate in zip(Contender, (100.0, 50.0, 20.0), strict=True)
        }
    )
    assert not results.is_settled()


def test_dropped_contender_has_no_ratio_and_its_reason_is_reported() -> None:
    results = make_results(100, 50, 90)
    results.drop(Contender.SLIM, "slimd ended\nat its start")
    assert results.rate_ratio(Contender.SLIM, Contender.HOST) is None
    assert results.verdict(SCENARIO.bars[0]) is None
    assert list(absent_lines([results])) == ["echo, slim: slimd ended at its start"]
    assert "not measured" in render_markdown(MACHINE, [results])


def test_report_states_medians_ratios_verdict_and_steps() -> None:
    report = render_markdown(MACHINE, [make_results(100, 50, 90)])
    assert "| echo | round trips/s | 100 | 50 | 90 | 0.900 [0.900, 0.900]" in report
    assert "| echo | overlay | 1.30 | 1.800 [1.800, 1.800] | holds |" in report
    assert "| connect | 30.0 | 30.0 | 30.0 |" in report
    assert "tso on" in report


def test_raw_lines_hold_every_sample_round_by_round() -> None:
    lines = [msgspec.json.decode(line) for line in sample_lines(make_results(3, 2, 1, rounds=2))]
    assert [(line["round"], line["contender"], line["rate"]) for line in lines] == [
        (1, "host", 3),
        (1, "overlay", 2),
        (1, "slim", 1),
        (2, "host", 3),
        (2, "overlay", 2),
        (2, "slim", 1),
    ]
    assert lines[0]["parts"] == {"server": 0.5}


def test_cpu_use_is_counted_per_second_of_the_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lab.accounting._cores", lambda: 2)
    before = Snapshot(at=10.0, idle_s=100.0, softirq_s=1.0, steal_s=0.0, parts={"server": 5.0})
    after = Snapshot(
        at=12.0, idle_s=101.0, softirq_s=1.5, steal_s=0.5, parts={"server": 6.0, "load": 0.5}
    )
    use = between(before, after)
    assert use.machine == pytest.approx(2 - 1.5 / 2)
    assert use.softirq == pytest.approx(0.25)
    assert use.parts == {"server": pytest.approx(0.5), "load": pytest.approx(0.25)}


def test_average_of_samples_is_taken_by_name() -> None:
    one, other = make_sample(100, machine=1.0), make_sample(300, machine=2.0)
    merged = average([one, other])
    assert merged.rate == 200
    assert merged.cpu.machine == 1.5
    assert merged.cpu.seconds == 2.0
    assert merged.cpu.parts == {"server": 0.5}
    assert merged.extra == {"connect_p50_us": 30.0}


def make_row(direction: str, path: str, reason: str = "") -> ConnectionRow:
    return ConnectionRow(
        direction=direction,
        overlay_local="10.77.1.2:4000",
        overlay_peer="10.77.2.2:80",
        host_peer="192.168.77.2:20000",
        path=path,
        reason=reason,
        state="estab",
    )


def test_proof_counts_outbound_connections_by_path_and_reason() -> None:
    rows = [
        make_row("out", "fast"),
        make_row("out", "fast"),
        make_row("out", "fallback", "resolve-budget"),
        make_row("in", "fast"),
        make_row("listen", "fallback", "host-ports-exhausted"),
    ]
    assert count_paths(rows) == (2, {"fallback: resolve-budget": 1})
