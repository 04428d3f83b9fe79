"""Which tests are cases of docs/compatibility.md, and what came of them in a run.

A module of cases sets `COMPATIBILITY = Cases(...)`. A test with the fixture `pair` or `both` runs
natively and under Slim, with the same demands or compared: the same as native. The marks
`differs(how)` and `falls_back(why)` say otherwise; `expected` of the module is for tests that have
no native twin.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pathlib import Path

SAME = "same as native"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cases:
    """What a module of cases is about."""

    heading: str
    expected: str = "works"
    """Of a test without a native twin."""


class Recorder:
    """A plugin of pytest that writes what came of every case to a file, as JSON."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._cases: dict[tuple[str, str], dict[str, Any]] = {}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item) -> Any:
        report = yield
        cases = getattr(getattr(item, "module", None), "COMPATIBILITY", None)
        if isinstance(item, pytest.Function) and isinstance(cases, Cases):
            self._record(item, cases, report)
        return report

    def _record(self, item: pytest.Function, cases: Cases, report: pytest.TestReport) -> None:
        name = item.originalname
        case = self._cases.setdefault(
            (cases.heading, name),
            {
                "heading": cases.heading,
                "case": title(name),
                "result": result_of(item, cases),
                "passed": 0,
                "failed": 0,
                "skipped": 0,
            },
        )
        # A test counts once: by its call, or by what kept it from being called.
        if report.when == "call" or not report.passed:
            case[report.outcome] += 1

    def pytest_sessionfinish(self) -> None:
        self._path.write_text(json.dumps([*self._cases.values()], indent=1) + "\n")


def title(name: str) -> str:
    """test_accept_ends_well -> accept ends well"""
    return name.removeprefix("test_").replace("_", " ")


def result_of(item: pytest.Function, cases: Cases) -> str:
    """What the page says of the case if its tests pass."""
    for mark, words in (("differs", "differs: "), ("falls_back", "falls back: ")):
        marker = item.get_closest_marker(mark)
        if marker is not None:
            return words + str(marker.args[0])
    return SAME if {"pair", "both"} & {*item.fixturenames} else cases.expected
