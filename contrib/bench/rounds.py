"""Running one scenario: servers of all contenders, warm-up, then round after round, interleaved."""

from __future__ import annotations

import contextlib
import os
from collections import deque
from typing import TYPE_CHECKING, Self

from lab.commands import find_missing
from lab.hosts import uninterrupted
from lab.measuring import Conditions, Sample, average, measure
from lab.places import Contender
from lab.proof import collect_proof

from bench.results import Results
from bench.scenario import Placement
from slim.broker.errors import SlimError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from types import TracebackType

    from lab.programs import Program, Server
    from lab.testbed import Testbed

    from bench.scenario import Scenario

WARM_UP_S = 1
PROOF_S = 2
"""slimctl is asked on both hosts while that load runs."""
PROOF_ATTEMPTS = 3


class Rounds:
    """A scenario on a testbed; a context manager that stops the servers it started.

    A contender that fails is dropped, with its reason in `results.absent`; the others go on.
    """

    def __init__(self, bed: Testbed, scenario: Scenario, *, seconds: int, passes: int = 1) -> None:
        self.results = Results(scenario=scenario, seconds=seconds, absent=dict(bed.absent))
        self._bed = bed
        self._passes = passes
        self._program = scenario.program
        self._cores = os.sched_getaffinity(0)
        self._server_core = min(self._cores)
        is_shared = scenario.placement is Placement.ONE_CORE
        self._load_core = self._server_core if is_shared else max(self._cores)
        self._broker_cores = {self._server_core} if is_shared else self._cores
        self._brokers: dict[str, int] = {}
        self._servers: dict[Contender, Server] = {}
        self._rates: dict[Contender, float] = {}

    def __enter__(self) -> Self:
        missing = find_missing(self._program.requires)
        if missing:
            raise SlimError(
                f"{self._program.name} cannot be measured: not installed: {', '.join(missing)}",
                hint="contrib/demo/run.sh installs what is needed",
            )
        try:
            with self._excusing(Contender.SLIM):
                self._place_brokers()
            for contender in self._bed.sites:
                if contender not in self.results.absent:
                    with self._excusing(contender):
                        self._start(contender)
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop()

    def warm_up(self) -> Iterator[Contender]:
        """One short load for each contender that does not count; Slim has to prove itself in it."""
        for contender in list(self._servers):
            yield contender
            with self._excusing(contender):
                if contender is Contender.SLIM:
                    self._prove()
                else:
                    self._measure(contender, self._program, WARM_UP_S)

    def run_round(self) -> Iterator[tuple[Contender, Sample]]:
        """Measure every contender once in each pass, and count the average.

        The order turns from round to round, and every second pass goes backwards, so that what
        changes slowly hits all alike. The samples count when the last of them was taken.
        """
        order = deque(self._servers)
        order.rotate(-self.results.rounds)
        samples: dict[Contender, list[Sample]] = {}
        for number in range(self._passes):
            for contender in [*reversed(order)] if number % 2 else [*order]:
                if contender not in self._servers:
                    continue
                with self._excusing(contender):
                    sample = self._measure(contender, self._program, self.results.seconds)
                    samples.setdefault(contender, []).append(sample)
                    yield contender, sample
        complete = {
            contender: average(taken)
            for contender, taken in samples.items()
            if contender in self._servers
        }
        if not complete:
            raise SlimError(
                f"{self._program.name}: no contender can run: "
                + "; ".join(f"{name}: {reason}" for name, reason in self.results.absent.items())
            )
        self.results.add_round(complete)

    @contextlib.contextmanager
    def _excusing(self, contender: Contender) -> Iterator[None]:
        try:
            yield
        except SlimError as error:
            self.results.drop(contender, str(error))
            server = self._servers.pop(contender, None)
            if server is not None:
                server.stop()

    def _place_brokers(self) -> None:
        """slimd's processes are told apart in the results."""
        for slimd in self._bed.slimds:
            slimd.place_on(self._broker_cores)
            for role, pid in slimd.processes().items():
                self._brokers[f"slimd {slimd.host} {role}"] = pid

    def _start(self, contender: Contender) -> None:
        directory = self._directory(contender)
        directory.mkdir(mode=0o755)
        place = self._bed.sites[contender].server
        self._servers[contender] = self._program.start(place, directory, self._server_core)

    def _measure(
        self,
        contender: Contender,
        program: Program,
        seconds: int,
        during: Callable[[], None] | None = None,
    ) -> Sample:
        server = self._servers[contender]
        # Where this contender has not run yet, another's rate says how much to ask for.
        rate = self._rates.get(contender) or max(self._rates.values(), default=None)
        sample = measure(
            self._bed.sites[contender],
            server,
            program.load(server.endpoint, seconds, rate),
            self._directory(contender) / "load.log",
            Conditions(seconds=seconds, core=self._load_core, brokers=self._brokers),
            during,
        )
        if program is self._program:
            self._rates[contender] = sample.rate
        return sample

    def _prove(self) -> None:
        """Loads until all connections are fast: the first may be made before the way is known."""
        program = self.results.scenario.proof or self._program
        for _ in range(PROOF_ATTEMPTS):
            self._measure(Contender.SLIM, program, PROOF_S, self._keep_proof)
            if self.results.proof is not None and self.results.proof.is_complete():
                return
        if self.results.proof is None or self.results.proof.fast == 0:
            raise SlimError(f"no connection takes the fast path: {self.results.proof}")

    def _keep_proof(self) -> None:
        self.results.proof = collect_proof(self._bed.slimds)

    def _directory(self, contender: Contender) -> Path:
        return self._bed.lab.directory / f"{self._program.name}-{contender}"

    def _stop(self) -> None:
        with uninterrupted():
            for server in self._servers.values():
                server.stop()
            self._servers.clear()
