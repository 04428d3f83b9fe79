"""CPython's own tests in a container on the overlay, and what came of them.

They talk to themselves at localhost, 127.0.0.1 and ::1, which Slim leaves alone. Here `localhost`
is the container's overlay addresses (a hosts file), and so are the literals, in a copy of the tests
that is otherwise links into the installed package. Both runs get the same copy.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import socket
import subprocess
import sys
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from support.two_hosts import TESTS

if TYPE_CHECKING:
    from support.two_hosts import TwoHosts, Workload

RUNNER = TESTS / "cpython" / "run_suite.py"
PATIENCE_S = 60.0
"""For one test; the longest take 20 s."""
HANGS = 5
"""So many tests of a run may hang before it is given up."""
UNFINISHED = "unfinished"
_LITERAL = re.compile(r"""(["'])(127\.0\.0\.1|::1)\1""")
_REWRITTEN = ("test_asyncio", "support")


@dataclass(slots=True)
class Outcomes:
    """What came of each test of one run, by test id."""

    by_test: dict[str, set[str]] = field(default_factory=dict)
    """More than one: subtests, or a failure in the test and one in its clean-up."""
    log: str = ""
    """What the suite printed, with the traces of all failures."""

    def with_outcome(self, *beginnings: str) -> list[str]:
        """Tests with an outcome that begins with one of these."""
        return sorted(
            test
            for test, outcomes in self.by_test.items()
            if any(outcome.startswith(beginnings) for outcome in outcomes)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    test: str
    native: frozenset[str]
    brokered: frozenset[str]

    def __str__(self) -> str:
        ways = (("natively", self.native), ("with Slim", self.brokered))
        told = "; ".join(f"{how}: {', '.join(sorted(got)) or 'not run'}" for how, got in ways)
        return f"{self.test}: {told}"


def compare(first: Outcomes, second: Outcomes) -> list[Difference]:
    """Tests with another outcome in the second run, or that only one of them has."""
    return [
        Difference(
            test=test,
            native=frozenset(first.by_test.get(test, ())),
            brokered=frozenset(second.by_test.get(test, ())),
        )
        for test in sorted({*first.by_test, *second.by_test})
        if first.by_test.get(test) != second.by_test.get(test)
    ]


class Suites:
    """Where the suites run: one container on host a, natively or with Slim."""

    def __init__(self, hosts: TwoHosts) -> None:
        self._hosts = hosts
        self._brokered = hosts.workload("a", "cpython")
        self._directory = hosts.directory("cpython")
        self._library = self._directory / "lib"
        self._numbers = itertools.count()
        _write_names(hosts.machines["a"].path("/etc"), self._brokered)
        copy_tests(self._library, self._brokered)

    def run_natively(self, suite: str, timeout_s: float) -> Outcomes:
        """On the plain overlay: the same container, with the same files, but no filter."""
        # The host's mounts, for its hosts file; then the container's network.
        enter = ("nsenter", f"--net=/run/netns/{self._brokered.netns}", "--")
        return self._run((*self._hosts.machines["a"].prefix, *enter), suite, timeout_s)

    def run_brokered(self, suite: str, timeout_s: float) -> Outcomes:
        return self._run(self._brokered.prefix, suite, timeout_s)

    def _run(self, prefix: tuple[str, ...], suite: str, timeout_s: float) -> Outcomes:
        own = self._directory / f"{suite}-{next(self._numbers)}"
        own.mkdir()
        results = own / "outcomes"
        argv = [*prefix, sys.executable, "-W", "ignore", str(RUNNER), f"test.{suite}", str(results)]
        hung: list[str] = []
        said = ""
        with (own / "log").open("w+b") as log:
            # A test that hangs ends the run; it goes on with the next one.
            while len(hung) < HANGS:
                done = subprocess.run(
                    [*argv, str(PATIENCE_S)],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    # Files that a test makes go into its working directory.
                    cwd=own,
                    env={**os.environ, "PYTHONPATH": str(self._library), "LC_ALL": "C.UTF-8"},
                    timeout=timeout_s,
                    check=False,
                )
                log.seek(0)
                said = log.read().decode(errors="replace")
                outcomes = read_outcomes(results)
                outcomes.log = said
                if done.returncode == 0:
                    return outcomes
                unfinished = [test for test in outcomes.with_outcome(UNFINISHED)]
                if unfinished == hung:
                    break
                hung = unfinished
        where = " ".join(prefix)
        raise AssertionError(f"{suite} does not come to its end in {where}:\n{said[-4000:]}")


def read_outcomes(path: Path) -> Outcomes:
    """What run_suite.py wrote; a test that began and has no outcome is UNFINISHED."""
    outcomes = Outcomes()
    for line in path.read_text().splitlines() if path.exists() else ():
        test, outcome = json.loads(line)
        got = outcomes.by_test.setdefault(test, set())
        if outcome is not None:
            got.add(outcome)
    for got in outcomes.by_test.values():
        if not got:
            got.add(UNFINISHED)
    return outcomes


def copy_tests(directory: Path, workload: Workload) -> None:
    """Our interpreter's `test` package below the directory, with the container's addresses."""
    found = find_spec("test")
    assert found is not None
    assert found.submodule_search_locations
    original = Path(found.submodule_search_locations[0])
    addresses = {"127.0.0.1": workload.address4, "::1": workload.address6}
    package = directory / "test"
    package.mkdir(parents=True)
    for path in original.iterdir():
        if path.name in _REWRITTEN or path.suffix == ".py":
            _copy(path, package / path.name, addresses)
        elif path.name != "__pycache__":
            (package / path.name).symlink_to(path)


def _copy(source: Path, target: Path, addresses: dict[str, str]) -> None:
    if source.is_dir():
        target.mkdir()
        for path in source.iterdir():
            if path.name != "__pycache__":
                _copy(path, target / path.name, addresses)
    elif source.suffix == ".py" and _LITERAL.search(text := source.read_text(errors="replace")):
        target.write_text(
            _LITERAL.sub(lambda found: f"{found[1]}{addresses[found[2]]}{found[1]}", text)
        )
    else:
        target.symlink_to(source)


def _write_names(etc: Path, workload: Workload) -> None:
    names = f"localhost {socket.gethostname()}"
    lines = (f"{workload.address4} {names}", f"{workload.address6} localhost ip6-localhost")
    (etc / "hosts").write_text("\n".join(lines) + "\n")
    # Nobody answers questions about other names: without this each takes seconds to fail.
    (etc / "nsswitch.conf").write_text("hosts: files\n")
