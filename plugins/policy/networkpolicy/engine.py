"""The verdict about a flow, from compiled policies. Pure, and the same for the same question.

    Admin tier -> NetworkPolicies of the subject's namespace -> Baseline tier -> no opinion

The subject is the end that a direction is about: the source at egress, the destination at ingress.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from slim.plugins.policy.networkpolicy.labels import lowest
from slim.plugins.policy.networkpolicy.matching import Member, MemberIndex
from slim.plugins.policy.networkpolicy.model import Action, PodPeer, Tier, labels_of_namespace
from slim.plugins.policy.networkpolicy.wording import isolated_by, rule_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from slim.broker.plugin_api import Direction
    from slim.plugins.policy.networkpolicy.labels import Bits
    from slim.plugins.policy.networkpolicy.matching import Labels, PortName
    from slim.plugins.policy.networkpolicy.model import NetworkPolicy
    from slim.plugins.policy.networkpolicy.table import Flow, Table, Term


class Outcome(Enum):
    ALLOW = "allow"
    DENY = "deny"
    OPEN = "open"
    """Either, depending on whose the destination is."""


@dataclass(frozen=True, slots=True)
class Decision:
    outcome: Outcome
    rule: str
    """Which rule of which policy decided, or which policies isolate without one that allows."""


class NamespaceUnit:
    """The NetworkPolicies of one namespace, by direction."""

    def __init__(
        self,
        policies: Mapping[Direction, Sequence[NetworkPolicy]],
        tables: Mapping[Direction, Table],
    ) -> None:
        """`policies` are those that isolate, in the order of their names."""
        self.policies = policies
        self.tables = tables
        self._indexes = {
            direction: MemberIndex(
                {number: PodPeer(each.namespace, each.pods) for number, each in enumerate(own)}
            )
            for direction, own in policies.items()
        }

    def isolating(self, direction: Direction, subject: Member) -> Bits:
        """Numbers of the policies that select the workload; none: it is not isolated."""
        return self._indexes[direction].matching(subject)


@dataclass(frozen=True, slots=True)
class TierUnit:
    """The ClusterNetworkPolicies of one tier, by direction."""

    tables: Mapping[Direction, Table]


class Engine:
    """Answers for one set of policies."""

    def __init__(
        self,
        namespaces: Mapping[str, NamespaceUnit],
        tiers: Mapping[Tier, TierUnit],
        namespace_labels: Mapping[str, Labels],
    ) -> None:
        self.namespaces = namespaces
        self._tiers = tiers
        self._namespace_labels = namespace_labels

    @property
    def is_empty(self) -> bool:
        """Whether there is no policy at all."""
        return not self.namespaces and not any(
            table.terms for unit in self._tiers.values() for table in unit.tables.values()
        )

    def member(self, namespace: str, labels: Labels, ports: Mapping[PortName, int]) -> Member:
        """A workload, with what is known of its namespace."""
        known = self._namespace_labels.get(namespace)
        if known is None:
            known = frozenset(labels_of_namespace(namespace))
        return Member(namespace, known, labels, ports)

    def tables(self, direction: Direction) -> Mapping[Tier, Table]:
        return {tier: unit.tables[direction] for tier, unit in self._tiers.items()}

    def decide(self, direction: Direction, flow: Flow) -> Decision | None:
        """The verdict when both ends are known; None when no policy has anything to say."""
        term = self._find(Tier.ADMIN, direction, flow)
        if term is not None and term.action is not Action.PASS:
            return _decided(term, direction)
        unit = self.namespaces.get(flow.subject.namespace)
        isolating = unit.isolating(direction, flow.subject) if unit is not None else 0
        if unit is not None and isolating:
            term = unit.tables[direction].find(flow)
            if term is not None:
                return _decided(term, direction)
            return Decision(Outcome.DENY, _isolated(unit, direction, isolating))
        term = self._find(Tier.BASELINE, direction, flow)
        if term is not None and term.action is not Action.PASS:
            return _decided(term, direction)
        return None

    def _find(self, tier: Tier, direction: Direction, flow: Flow) -> Term | None:
        unit = self._tiers.get(tier)
        return None if unit is None else unit.tables[direction].find(flow)

    def decide_open(self, direction: Direction, flow: Flow) -> Decision | None:
        """The verdict when only the address of the destination is known; `flow.peer` is nobody.

        Denied and allowed are final: they hold whoever it is.
        """
        can_allow: list[str] = []
        can_deny: list[str] = []
        if self._try_tier(Tier.ADMIN, direction, flow, can_allow, can_deny):
            unit = self.namespaces.get(flow.subject.namespace)
            isolating = unit.isolating(direction, flow.subject) if unit is not None else 0
            if unit is not None and isolating:
                found = unit.tables[direction].find_candidates(flow)
                if found.named is not None:
                    can_allow.append(rule_of(found.named, direction))
                if None in found.actions:
                    can_deny.append(_isolated(unit, direction, isolating))
            elif self._try_tier(Tier.BASELINE, direction, flow, can_allow, can_deny):
                can_allow.append("")
        if can_allow and can_deny:
            return Decision(Outcome.OPEN, can_deny[0])
        if can_deny:
            return Decision(Outcome.DENY, can_deny[0])
        return Decision(Outcome.ALLOW, can_allow[0]) if can_allow[0] else None

    def _try_tier(
        self,
        tier: Tier,
        direction: Direction,
        flow: Flow,
        can_allow: list[str],
        can_deny: list[str],
    ) -> bool:
        """Note what the tier may decide; whether it may leave the decision to the next."""
        unit = self._tiers.get(tier)
        if unit is None:
            return True
        found = unit.tables[direction].find_candidates(flow)
        rule = "" if found.named is None else rule_of(found.named, direction)
        if Action.ACCEPT in found.actions:
            can_allow.append(rule)
        if Action.DENY in found.actions:
            can_deny.append(rule)
        return bool(found.actions & {None, Action.PASS})

    def isolates(self, direction: Direction, subject: Member) -> bool:
        """Whether `decide` can deny any flow of the workload in that direction."""
        admin = self._tiers.get(Tier.ADMIN)
        if admin is not None and admin.tables[direction].has_action(subject, Action.DENY):
            return True
        unit = self.namespaces.get(subject.namespace)
        if unit is not None and unit.isolating(direction, subject):
            return not unit.tables[direction].takes_all(subject)
        baseline = self._tiers.get(Tier.BASELINE)
        return baseline is not None and baseline.tables[direction].has_action(subject, Action.DENY)


def _decided(term: Term, direction: Direction) -> Decision:
    outcome = Outcome.DENY if term.action is Action.DENY else Outcome.ALLOW
    return Decision(outcome, rule_of(term, direction))


def _isolated(unit: NamespaceUnit, direction: Direction, isolating: Bits) -> str:
    first = unit.policies[direction][lowest(isolating)]
    return isolated_by(first, isolating.bit_count() - 1, direction)
