"""python -m demo.demo: four unmodified programs over host network, overlay and Slim (root).

Two hosts as network namespaces, a VXLAN overlay between them, slimd on both. It removes all that
it made, also when it fails or is interrupted.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from typing import TYPE_CHECKING

from bench import memcached, nginx, postgres, redis
from bench.report import absent_lines, format_rate
from bench.rounds import Rounds
from lab.hosts import interrupt_on_signals
from lab.places import Contender
from lab.testbed import Testbed
from rich.console import Console

from demo.display import Display, proof_panel, results_table
from slim.broker.errors import SlimError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.results import Results
    from bench.scenario import Scenario

SCENARIOS = (nginx.SCENARIO, memcached.SCENARIO, redis.SCENARIO, postgres.SCENARIO)
ROUNDS = 3
SECONDS = 3


def main() -> int:
    options = _parse(sys.argv[1:])
    logging.basicConfig(level=logging.ERROR, format="%(levelname)s: %(message)s")
    interrupt_on_signals()
    console = Console()
    scenarios = [each for each in SCENARIOS if each.name in options.program]
    started = time.monotonic()
    try:
        everything = _run(console, scenarios, rounds=options.rounds, seconds=options.seconds)
    except SlimError as error:
        console.print(f"demo: {error.message}", markup=False, soft_wrap=True)
        if error.hint:
            console.print(f"hint: {error.hint}", markup=False, soft_wrap=True)
        return error.exit_code
    except KeyboardInterrupt:
        console.print("interrupted; everything was removed")
        return 130
    return _conclude(console, scenarios, everything, time.monotonic() - started)


def _run(
    console: Console, scenarios: Sequence[Scenario], *, rounds: int, seconds: int
) -> dict[str, Results]:
    everything: dict[str, Results] = {}
    steps = len(scenarios) * len(Contender) * (rounds + 1)
    with Display(console, scenarios, steps) as display:
        display.announce("building the two hosts")
        with Testbed() as bed:
            for scenario in scenarios:
                display.announce(f"{scenario.title}: starting")
                with Rounds(bed, scenario, seconds=seconds) as run:
                    display.add(run.results)
                    everything[scenario.name] = run.results
                    _run_program(display, run, rounds)
            display.announce("removing the two hosts")
    return everything


def _run_program(display: Display, run: Rounds, rounds: int) -> None:
    title = run.results.scenario.title
    for contender in run.warm_up():
        display.step(f"{title}: warming up {contender}")
    if run.results.proof is not None:
        display.show_proof(run.results.scenario, run.results.proof)
    for number in range(1, rounds + 1):
        display.announce(f"{title}, round {number} of {rounds}")
        for contender, sample in run.run_round():
            unit = run.results.scenario.program.unit
            display.step(f"{title}: {contender}: {format_rate(sample.rate)} {unit}")


def _conclude(
    console: Console,
    scenarios: Sequence[Scenario],
    everything: dict[str, Results],
    elapsed_s: float,
) -> int:
    """The final table and the proofs; 1 if something could not be measured."""
    for scenario in scenarios:
        proof = everything[scenario.name].proof
        if proof is not None:
            console.print(proof_panel(f"{scenario.title}, under load: {proof}", proof))
    console.print(results_table(scenarios, everything))
    absences = list(absent_lines(everything.values()))
    for line in absences:
        console.print(f"not measured: {line}", markup=False, soft_wrap=True)
    console.print(f"done in {elapsed_s:.0f} s; the hosts and all they ran are removed")
    return 1 if absences else 0


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m demo.demo",
        description="Four unmodified programs over host network, overlay and Slim, side by side.",
    )
    names = [scenario.name for scenario in SCENARIOS]
    add = parser.add_argument
    add("--program", action="append", choices=names, help="may be repeated (default: all)")
    add("--rounds", type=_count, default=ROUNDS, help="(default: %(default)s)")
    add("--seconds", type=_count, default=SECONDS, help="of one load (default: %(default)s)")
    options = parser.parse_args(argv)
    options.program = options.program or names
    return options


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 600:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to 600")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
