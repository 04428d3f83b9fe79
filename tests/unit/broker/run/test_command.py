"""What slim-run costs before it does anything; what it does is in tests/kernel/test_slim_run.py."""

from __future__ import annotations

import json
import subprocess
import sys

# Each takes 3 to 50 ms to import, of the 120 ms that starting a command may take.
EXPENSIVE = {
    "asyncio",
    "click",
    "dataclasses",
    "inspect",
    "ipaddress",
    "logging",
    "msgspec",
    "pathlib",
    "platform",
    "pyseccomp",
    "rich",
    "subprocess",
    "typing",
}


def imported_by(code: str) -> set[str]:
    printing = "; import json, sys; print(json.dumps(list(sys.modules)))"
    argv = [sys.executable, "-c", code + printing]
    return set(json.loads(subprocess.check_output(argv, text=True)))


def test_slim_run_imports_nothing_expensive() -> None:
    added = imported_by("import slim.broker.run.command") - imported_by("pass")
    assert not added & EXPENSIVE
    assert "slim.broker.run.launch" in added
