"""Proof, from slimd itself, that the connections of a load take the fast path."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lab.slimd import ConnectionRow, Slimd

FAST = "fast"


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """What `slimctl connections` showed of one load, while it ran."""

    fast: int
    """Connections of the client's host on the fast path."""
    others: dict[str, int]
    """The other ones: how many for which reason."""
    rows: dict[str, list[ConnectionRow]]
    """What `slimctl connections --json` printed, by host."""

    def is_complete(self) -> bool:
        return self.fast > 0 and not self.others

    def __str__(self) -> str:
        total = self.fast + sum(self.others.values())
        reasons = ", ".join(f"{count} {reason}" for reason, count in self.others.items())
        return f"{self.fast} of {total} connections fast" + (f" ({reasons})" if reasons else "")


def collect_proof(slimds: Sequence[Slimd]) -> Proof:
    """Ask both hosts, the client's first."""
    rows = {slimd.host: slimd.connections() for slimd in slimds}
    fast, others = count_paths(rows[slimds[0].host])
    return Proof(fast=fast, others=others, rows=rows)


def count_paths(rows: Sequence[ConnectionRow]) -> tuple[int, dict[str, int]]:
    """How many outbound connections are fast, and how many are not for which reason."""
    paths = Counter(
        FAST if row.path == FAST else f"{row.path}: {row.reason or 'no reason given'}"
        for row in rows
        if row.direction == "out"
    )
    return paths.pop(FAST, 0), dict(paths)
