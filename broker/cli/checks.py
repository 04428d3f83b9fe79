"""What `slimctl doctor` finds, one Check each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Outcome = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Check:
    name: str
    outcome: Outcome
    found: str
    remedy: str = ""


def make_check(name: str, good: bool, found: str, remedy: str, bad: Outcome = "fail") -> Check:
    return Check(name, "ok", found) if good else Check(name, bad, found, remedy)
