"""python -m bench: measure host, overlay and Slim against each other (root)."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path
from typing import IO, TYPE_CHECKING

import msgspec
from lab.hosts import interrupt_on_signals
from lab.places import Contender
from lab.testbed import Testbed
from rich.console import Console

from bench.machine import describe_machine
from bench.report import absent_lines, format_estimate, format_rate, render_markdown, sample_lines
from bench.rounds import Rounds
from bench.statistics import Verdict
from bench.suite import SCENARIOS
from slim.broker.errors import SlimError

if TYPE_CHECKING:
    from bench.results import Results
    from bench.scenario import Scenario

FEWEST_ROUNDS = 10
MOST_ROUNDS = 60
QUICK_ROUNDS = 3

_EPILOG = """\
Scenarios: connections are kept (rr, nginx, memcached, redis, postgres), made anew (crr), or one
big stream (bulk). Both ends and slimd share one core, except in bulk, where each end has one:
what the scheduler does with more is most of what rounds differ by. Rounds are added until the
95 % interval of every ratio with a bar is narrower than 2 %. A bar holds, or fails, when the
interval lies on one side of it.

exit status: 0; 1 if a bar fails, or a contender that was asked for could not run.
"""


def main() -> int:
    options = _parse(sys.argv[1:])
    logging.basicConfig(format="%(levelname)s: %(message)s")
    interrupt_on_signals()
    console = Console(stderr=True)
    try:
        everything = _run(options, console)
    except SlimError as error:
        console.print(f"bench: {error.message}", markup=False)
        if error.hint:
            console.print(f"hint: {error.hint}", markup=False)
        return error.exit_code
    except KeyboardInterrupt:
        console.print("interrupted; everything was removed")
        return 130
    return _judge_all(everything, console)


def _run(options: argparse.Namespace, console: Console) -> list[Results]:
    everything: list[Results] = []
    with Testbed(options.contender) as bed:
        machine = describe_machine(bed)
        raw: IO[bytes] | None = options.output.open("wb") if options.output else None
        try:
            _write(raw, [msgspec.json.encode(machine)])
            for scenario in SCENARIOS:
                if scenario.name in options.scenario:
                    results = _run_scenario(bed, scenario, options, console)
                    everything.append(results)
                    _write(raw, sample_lines(results))
        finally:
            if raw is not None:
                raw.close()
    text = render_markdown(machine, everything)
    if options.markdown:
        options.markdown.write_text(text)
    print(text, end="")
    return everything


def _run_scenario(
    bed: Testbed, scenario: Scenario, options: argparse.Namespace, console: Console
) -> Results:
    fewest, most = options.rounds
    with Rounds(bed, scenario, seconds=options.seconds, passes=options.passes) as rounds:
        results = rounds.results
        for contender in rounds.warm_up():
            console.print(f"{scenario.title}: warming up {contender}", markup=False)
        while results.rounds < fewest or (results.rounds < most and not results.is_settled()):
            for _ in rounds.run_round():
                pass
            console.print(_describe_round(results), markup=False, highlight=False, soft_wrap=True)
    return results


def _describe_round(results: Results) -> str:
    rates = [
        f"{contender} {format_rate(samples[-1].rate)}"
        for contender, samples in results.samples.items()
    ]
    ratio = format_estimate(results.rate_ratio(Contender.SLIM, Contender.HOST))
    title = results.scenario.title
    return f"{title}: round {results.rounds}: {', '.join(rates)}; slim / host so far {ratio}"


def _judge_all(everything: list[Results], console: Console) -> int:
    status = 0
    for line in absent_lines(everything):
        console.print(f"not measured: {line}", markup=False, soft_wrap=True)
        status = 1
    for results in everything:
        for bar in results.scenario.bars:
            if results.verdict(bar) is Verdict.FAILS:
                status = 1
    return status


def _write(raw: IO[bytes] | None, lines: list[bytes]) -> None:
    if raw is not None:
        raw.writelines(line + b"\n" for line in lines)
        raw.flush()


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Measure host network, overlay and Slim against each other, round by round.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = [scenario.name for scenario in SCENARIOS]
    add = parser.add_argument
    add(
        "--scenario",
        action="append",
        choices=names,
        help="may be repeated (default: all)",
    )
    add(
        "--contender",
        action="append",
        type=Contender,
        choices=list(Contender),
        help="may be repeated (default: all)",
    )
    add("--seconds", type=_count, default=2, help="length of one load (default: %(default)s)")
    add(
        "--passes",
        type=_count,
        default=2,
        help="how often each round measures each contender (default: %(default)s)",
    )
    add(
        "--rounds",
        type=_rounds,
        default=(FEWEST_ROUNDS, MOST_ROUNDS),
        metavar="FEWEST-MOST",
        help=f"(default: {FEWEST_ROUNDS}-{MOST_ROUNDS})",
    )
    add(
        "--quick",
        action="store_true",
        help=f"{QUICK_ROUNDS} rounds of one second: to see that everything works",
    )
    add("--output", type=Path, metavar="FILE", help="write every sample there, as JSON lines")
    add("--markdown", type=Path, metavar="FILE", help="write the report there, too")
    options = parser.parse_args(argv)
    options.scenario = options.scenario or names
    options.contender = options.contender or list(Contender)
    if options.quick:
        options.seconds, options.passes = 1, 1
        options.rounds = QUICK_ROUNDS, QUICK_ROUNDS
    return options


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 600:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to 600")
    return int(text)


def _rounds(text: str) -> tuple[int, int]:
    fewest, _, most = text.partition("-")
    rounds = _count(fewest), _count(most or fewest)
    if rounds[0] > rounds[1]:
        raise argparse.ArgumentTypeError(f"{text!r}: the first number is the smaller one")
    return rounds


if __name__ == "__main__":
    sys.exit(main())
