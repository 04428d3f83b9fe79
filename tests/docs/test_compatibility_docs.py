"""docs/compatibility.md lists the cases that there are."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import generate_compatibility as generator

from support.compatibility import SAME, title

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pytest

TESTS = Path(__file__).resolve().parents[1]
ROW = re.compile(r"^\| (?P<case>[^|]+) \| (?P<result>[^|]+) \| \d[^|]* \|$", re.MULTILINE)


def cases() -> Iterator[str]:
    """Titles of all tests in modules that set COMPATIBILITY, as they are written."""
    for path in sorted((*TESTS.glob("compat/test_*.py"), *TESTS.glob("netns/test_*.py"))):
        body = ast.parse(path.read_text()).body
        targets = {
            target.id
            for node in body
            if isinstance(node, ast.Assign)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        if "COMPATIBILITY" in targets:
            for node in body:
                if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                    yield title(node.name)


def test_the_page_lists_every_case_and_no_other() -> None:
    listed = [match["case"] for match in ROW.finditer(generator.TARGET.read_text())]
    assert sorted(listed) == sorted(cases()), (
        "stale: run the end-to-end tests with --compatibility FILE, then "
        "python contrib/generate_compatibility.py FILE"
    )


def case(name: str, **counts: int) -> dict[str, Any]:
    counted = {"passed": 0, "failed": 0, "skipped": 0, **counts}
    return {"heading": "Calls", "case": name, "result": SAME, **counted}


def test_a_page_of_two_cases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page, results = tmp_path / "page.md", tmp_path / "results.json"
    monkeypatch.setattr(generator, "TARGET", page)
    results.write_text(json.dumps([case("connect", passed=4), case("accept", passed=2, skipped=1)]))
    assert generator.main([str(results)]) == 0
    assert "## Calls" in page.read_text()
    assert "| connect | same as native | 4 |\n| accept | same as native | 2, 1 skipped |" in (
        page.read_text()
    )


def test_a_failed_case_makes_no_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page, results = tmp_path / "page.md", tmp_path / "results.json"
    monkeypatch.setattr(generator, "TARGET", page)
    for found in ([case("connect", passed=3, failed=1)], []):
        results.write_text(json.dumps(found))
        assert generator.main([str(results)]) == 1
    assert not page.exists()
