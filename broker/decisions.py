"""What policy is asked about a flow, what it answers, and how several answers become one. Pure.

Egress is decided at the source's slimd, mostly before it is known whose the destination is;
ingress at the destination's, with both identities. A flow needs both.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING

from slim.broker.shaping import strictest

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from slim.broker.endpoints import Address
    from slim.broker.shaping import Shaping


class Direction(StrEnum):
    """Which end of a flow is asked."""

    EGRESS = "egress"
    INGRESS = "ingress"


@dataclass(frozen=True, slots=True)
class Identity:
    """A workload as policy knows it; `labels` were given by who started it."""

    workload: str
    namespace: str
    labels: Mapping[str, str]


PLAIN_PEER = Identity("", "", {})
"""The identity of an endpoint that nobody brokers: no name, no namespace, no labels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowRequest:
    """May `source` connect to `destination_address`:`port`? Addresses are overlay addresses."""

    direction: Direction
    source: Identity
    source_address: Address
    destination: Identity | None
    """None: not known yet, which happens for egress only. PLAIN_PEER: nobody brokers it."""
    destination_address: Address
    port: int


MAX_RULE = 80
AUDIT_PREFIX = "would deny: "
_NOT_ENCRYPTED = "; nothing encrypts the traffic"
_RULE_ROOM = MAX_RULE - len(_NOT_ENCRYPTED)


@dataclass(frozen=True, slots=True)
class Verdict:
    """One answer; `rule` says who gave it and why, as `plugin:rule`, in at most 80 characters."""

    allow: bool
    rule: str
    audit: bool = False
    """With `allow`: `rule` would have denied, if it were not only watched. Counted and shown."""
    provisional: bool = False
    """With `allow`, at egress: it depends on whose the destination is, and this is not known yet.

    Where it stays unknown, the flow is refused.
    """
    shaping: Shaping | None = None
    """Limits of the connection, if it is allowed."""
    encrypt: bool = False
    """Allowed only if its traffic is encrypted on the wire; refused where nothing does that."""

    @property
    def text(self) -> str:
        """The rule as records and peers have it: what is audited begins with AUDIT_PREFIX."""
        return (AUDIT_PREFIX + self.rule)[:MAX_RULE] if self.audit else self.rule


DEFAULT_VERDICT = Verdict(allow=True, rule="default")


def combine(verdicts: Iterable[Verdict], default: Verdict = DEFAULT_VERDICT) -> Verdict:
    """The strictest verdict wins; `default` when there is none.

    Independent of the order: among equally strict ones it is the first by the text of its rule.
    The limits of all verdicts hold, each the strictest of its kind, and so does the demand for
    encryption of any.
    """
    verdicts = [*verdicts]
    if not verdicts:
        return default
    winner = min(verdicts, key=_strictness)
    if len(verdicts) == 1 or not winner.allow:
        return winner
    return replace(
        winner,
        shaping=strictest(verdict.shaping for verdict in verdicts),
        encrypt=any(verdict.encrypt for verdict in verdicts),
        provisional=any(verdict.provisional for verdict in verdicts),
    )


def conclude(verdict: Verdict, limits: Shaping | None) -> Verdict:
    """The combined verdict of all plugins, with the limits of the configuration added.

    A demand for encryption is a deny: what backends encrypt in this version is the admission
    record, not what follows it. Every verdict, of a new flow or of a live connection, comes
    through here, so that what must be encrypted is never sent in the clear.
    """
    if not verdict.allow:
        return verdict
    if verdict.encrypt:
        return Verdict(allow=False, rule=verdict.rule[:_RULE_ROOM] + _NOT_ENCRYPTED)
    if limits is None:
        return verdict
    return replace(verdict, shaping=strictest((verdict.shaping, limits)))


def is_audited(text: str) -> bool:
    """Whether that is the text of a verdict that only audit kept from denying."""
    return text.startswith(AUDIT_PREFIX)


def verdict_word(path: str, rule: str) -> str:
    """What people are shown of the verdict behind a connection: allow, audit or deny."""
    if path == "denied":
        return "deny"
    return "audit" if is_audited(rule) else "allow"


def text_of_both(egress: str, ingress: str) -> str:
    """The one text by which a flow is shown: of what would be denied, else the destination's."""
    if is_audited(egress) and not is_audited(ingress):
        return egress
    return ingress or egress


def _strictness(verdict: Verdict) -> tuple[bool, bool, bool, bool, str]:
    return (
        verdict.allow,
        not verdict.encrypt,
        not verdict.provisional,
        not verdict.audit,
        verdict.rule,
    )
