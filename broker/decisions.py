"""What policy thinks: identities, the question, the verdict, and how several verdicts combine."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from slim.broker.endpoints import Address


class Direction(StrEnum):
    EGRESS = "egress"
    """Decided by the slimd of the source, before the destination is known for sure."""
    INGRESS = "ingress"
    """Decided by the slimd of the destination, with the source's authenticated identity."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What policy knows a workload by."""

    workload: str
    namespace: str
    labels: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowRequest:
    """May `source` connect to `destination_address`:`port`?"""

    direction: Direction
    source: Identity
    source_address: Address
    destination: Identity | None
    """None at egress when the address is not on this host: its slimd decides by identity."""
    destination_address: Address
    port: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """Yes or no, and the rule that says so, for people."""

    allow: bool
    rule: str


DEFAULT_VERDICT = Verdict(allow=True, rule="default")


def combine(verdicts: Iterable[Verdict], default: Verdict = DEFAULT_VERDICT) -> Verdict:
    """Strictest wins: any deny is a deny, whatever the order.

    The rule reported is the first of the deciding ones by name, so that it does not depend on
    the order in which plugins were loaded. Without a verdict, `default`.
    """
    ordered = sorted(verdicts, key=lambda verdict: (verdict.allow, verdict.rule))
    return ordered[0] if ordered else default
