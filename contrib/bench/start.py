"""python -m bench.start: what starting a program under slim-run costs over exec alone (root).

Each round starts /bin/true in the container's namespaces twice, with slim-run and without, in
turning order, on one core; the cost is the difference of the two.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from typing import TYPE_CHECKING

from lab.hosts import interrupt_on_signals
from lab.places import Contender
from lab.testbed import Testbed
from rich.console import Console

from bench.statistics import Estimate, estimate
from slim.broker.errors import SlimError

if TYPE_CHECKING:
    from collections.abc import Sequence

PROGRAM = "/bin/true"
BAR_MS = 120.0
ROUNDS = 40
WARM_UP = 3
START_LIMIT_S = 30


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.start",
        description="Measure what slim-run adds to the start of a program.",
        epilog=f"exit status: 0; 1 if it adds more than {BAR_MS:.0f} ms.",
    )
    parser.add_argument(
        "--rounds", type=int, default=ROUNDS, choices=range(5, 1001), metavar="5-1000"
    )
    rounds = parser.parse_args().rounds
    interrupt_on_signals()
    console = Console(stderr=True)
    try:
        plain, slim = measure(rounds)
    except SlimError as error:
        console.print(f"bench: {error.message}", markup=False)
        return error.exit_code
    except KeyboardInterrupt:
        console.print("interrupted; everything was removed")
        return 130
    cost = estimate([more - less for more, less in zip(slim, plain, strict=True)])
    print(render(plain, slim, cost))
    return 0 if cost.high <= BAR_MS else 1


def measure(rounds: int) -> tuple[list[float], list[float]]:
    """Milliseconds of every start, without slim-run and with it."""
    with Testbed([Contender.SLIM]) as bed:
        if Contender.SLIM in bed.absent:
            raise SlimError(bed.absent[Contender.SLIM])
        core = min(os.sched_getaffinity(0))
        for slimd in bed.slimds:
            slimd.place_on({core})
        slim = bed.sites[Contender.SLIM].client.command((PROGRAM,), core)
        # The same words without slim-run's own: into the host's mounts, into the container.
        netns = bed.lab.hosts["a"].containers[0].place().prefix
        words = slim[: slim.index("nsenter")]
        plain = [*words, *bed.slimds[0].prefix, *netns, PROGRAM]
        seen: tuple[list[float], list[float]] = ([], [])
        for number in range(-WARM_UP, rounds):
            order = (0, 1) if number % 2 else (1, 0)
            for which in order:
                took_ms = start((plain, slim)[which])
                if number >= 0:
                    seen[which].append(took_ms)
        return seen


def start(argv: Sequence[str]) -> float:
    """Run a command to its end; how long that took, in milliseconds."""
    began = time.perf_counter()
    done = subprocess.run(argv, capture_output=True, text=True, timeout=START_LIMIT_S, check=False)
    took_ms = (time.perf_counter() - began) * 1000
    if done.returncode != 0:
        raise SlimError(f"{' '.join(argv)} failed: {done.stderr.strip()[-500:]}")
    return took_ms


def render(plain: Sequence[float], slim: Sequence[float], cost: Estimate) -> str:
    verdict = "holds" if cost.high <= BAR_MS else "fails" if cost.low > BAR_MS else "undecided"
    return (
        f"start of {PROGRAM}, median ms of {cost.rounds} rounds: "
        f"{statistics.median(plain):.1f} alone, "
        f"{statistics.median(slim):.1f} with slim-run\n"
        f"slim-run adds {cost.median:.1f} ms [{cost.low:.1f}, {cost.high:.1f}]; "
        f"the bar, {BAR_MS:.0f} ms, {verdict}"
    )


if __name__ == "__main__":
    sys.exit(main())
