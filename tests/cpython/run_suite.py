"""Runs one suite of CPython's own tests and writes what came of each test, a JSON array a line.

Started by support/cpython_suites.py in a container, with or without Slim: standard library only.
    run_suite.py test.test_ftplib OUTCOMES SECONDS
A line is [test id, outcome]; a test whose outcome is null has begun. One that takes longer than
SECONDS ends the run, with every thread's stack on standard error; when OUTCOMES is there already,
the tests that it names are left out.
"""

from __future__ import annotations

import faulthandler
import importlib
import json
import sys
import unittest
from typing import TYPE_CHECKING, Any, TextIO

from test import support

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    Error = tuple[type[BaseException], BaseException, TracebackType] | tuple[None, None, None]

RESOURCES = ("cpu", "subprocess", "walltime")
# Elsewhere "network" means servers on the Internet.
LOCAL_NETWORK = ("test.test_socketserver",)


class Outcomes(unittest.TestResult):
    """Writes each outcome as soon as it is known; the worst of a test's is its last."""

    def __init__(self, stream: TextIO, patience_s: float) -> None:
        super().__init__()
        self._stream = stream
        self._patience_s = patience_s

    def startTest(self, test: unittest.TestCase) -> None:
        faulthandler.dump_traceback_later(self._patience_s, exit=True)
        super().startTest(test)
        self._write(test, None)

    def addSuccess(self, test: unittest.TestCase) -> None:
        self._write(test, "ok")

    def addError(self, test: unittest.TestCase, err: Error) -> None:
        self._write(test, _describe("error", err))
        super().addError(test, err)

    def addFailure(self, test: unittest.TestCase, err: Error) -> None:
        self._write(test, _describe("failure", err))
        super().addFailure(test, err)

    def addSubTest(
        self, test: unittest.TestCase, subtest: unittest.TestCase, err: Error | None
    ) -> None:
        if err is not None:
            self._write(subtest, _describe("failure", err))
        super().addSubTest(test, subtest, err)

    def addSkip(self, test: unittest.TestCase, reason: str) -> None:
        self._write(test, f"skipped: {reason}")

    def addExpectedFailure(self, test: unittest.TestCase, err: Error) -> None:
        self._write(test, "failed as expected")

    def addUnexpectedSuccess(self, test: unittest.TestCase) -> None:
        self._write(test, "succeeded unexpectedly")

    def _write(self, test: Any, outcome: str | None) -> None:
        self._stream.write(json.dumps([test.id(), outcome]) + "\n")
        self._stream.flush()


def _describe(kind: str, error: Error) -> str:
    # The exception's text holds ports and addresses, which differ from run to run.
    return f"{kind}: {error[0].__name__ if error[0] else ''}"


def _left_over(name: str, begun: set[str]) -> unittest.TestSuite:
    """The tests of a module without those."""
    tests = unittest.TestLoader().loadTestsFromModule(importlib.import_module(name))
    return unittest.TestSuite(test for test in _flatten(tests) if test.id() not in begun)


def _flatten(suite: unittest.TestSuite) -> Iterator[unittest.TestCase]:
    for test in suite:
        if isinstance(test, unittest.TestSuite):
            yield from _flatten(test)
        else:
            yield test


def main(name: str, path: str, patience_s: float) -> None:
    support.use_resources = (*RESOURCES, "network") if name in LOCAL_NETWORK else RESOURCES
    support.verbose = 0
    with open(path, "a+") as stream:
        stream.seek(0)
        begun = {json.loads(line)[0] for line in stream}
        result = Outcomes(stream, patience_s)
        # Held by nobody else: a test and what hangs on it are freed as soon as it is over.
        _left_over(name, begun).run(result)
        faulthandler.cancel_dump_traceback_later()
    for test, trace in result.errors + result.failures:
        print(f"{test.id()}\n{trace}", file=sys.stderr)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]))
