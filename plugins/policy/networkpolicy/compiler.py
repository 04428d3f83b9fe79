"""From policies to an engine. Units that have not changed are taken over from the engine before.

The NetworkPolicies of one namespace are one unit, the ClusterNetworkPolicies another: a change in
one namespace compiles that namespace.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from slim.broker.plugin_api import Direction
from slim.plugins.policy.networkpolicy.engine import Engine, NamespaceUnit, TierUnit
from slim.plugins.policy.networkpolicy.model import (
    Action,
    ClusterPolicy,
    Mode,
    Namespace,
    NetworkPolicy,
    PodPeer,
    Tier,
)
from slim.plugins.policy.networkpolicy.table import Table, Term

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from slim.plugins.policy.networkpolicy.model import Resource


@dataclass(slots=True)
class Units:
    """What was compiled, by the policies it was made of."""

    namespaces: dict[tuple[NetworkPolicy, ...], NamespaceUnit] = field(default_factory=dict)
    tiers: dict[tuple[Tier, tuple[ClusterPolicy, ...]], TierUnit] = field(default_factory=dict)
    compiled: int = 0
    """How many units had to be made."""

    def namespace(self, policies: tuple[NetworkPolicy, ...], before: Units) -> NamespaceUnit:
        unit = self.namespaces.get(policies) or before.namespaces.get(policies)
        if unit is None:
            unit = _compile_namespace(policies)
            self.compiled += 1
        self.namespaces[policies] = unit
        return unit

    def tier(self, tier: Tier, policies: tuple[ClusterPolicy, ...], before: Units) -> TierUnit:
        key = (tier, policies)
        unit = self.tiers.get(key) or before.tiers.get(key)
        if unit is None:
            unit = _compile_tier(policies)
            self.compiled += 1
        self.tiers[key] = unit
        return unit


@dataclass(frozen=True, slots=True)
class Compiled:
    """Everything that one set of documents says."""

    enforced: Engine
    """Of the policies that decide."""
    audited: Engine | None
    """As if those in audit mode decided, too; None if there are none."""
    resources: tuple[Resource, ...]
    units: Units


NOTHING = Compiled(Engine({}, {}, {}), None, (), Units())


def compile_resources(resources: Sequence[Resource], before: Compiled = NOTHING) -> Compiled:
    """The policies as an engine; `before` lends the units that are the same."""
    units = Units()
    audited = any(not isinstance(each, Namespace) and each.mode is Mode.AUDIT for each in resources)
    enforced = _engine(resources, [Mode.ENFORCE], units, before.units)
    watched = _engine(resources, [*Mode], units, before.units) if audited else None
    return Compiled(enforced, watched, tuple(resources), units)


def _engine(
    resources: Iterable[Resource], modes: Sequence[Mode], units: Units, before: Units
) -> Engine:
    by_namespace: dict[str, list[NetworkPolicy]] = defaultdict(list)
    by_tier: dict[Tier, list[ClusterPolicy]] = {tier: [] for tier in Tier}
    labels: dict[str, frozenset[tuple[str, str]]] = {}
    for each in resources:
        match each:
            case NetworkPolicy() if each.mode in modes:
                by_namespace[each.namespace].append(each)
            case ClusterPolicy() if each.mode in modes:
                by_tier[each.tier].append(each)
            case Namespace():
                labels[each.name] = frozenset(each.labels)
            case _:
                pass
    return Engine(
        {
            name: units.namespace(tuple(sorted(policies, key=lambda own: own.name)), before)
            for name, policies in by_namespace.items()
        },
        {
            # Which of equal priorities comes first is not specified; here it is the name's order.
            tier: units.tier(
                tier, tuple(sorted(own, key=lambda each: (each.priority, each.name))), before
            )
            for tier, own in by_tier.items()
        },
        labels,
    )


def _compile_namespace(policies: tuple[NetworkPolicy, ...]) -> NamespaceUnit:
    isolating = {
        direction: [each for each in policies if each.rules_for(direction) is not None]
        for direction in Direction
    }
    return NamespaceUnit(
        isolating,
        {
            direction: Table(
                [
                    Term(
                        PodPeer(policy.namespace, policy.pods),
                        peer,
                        rule.ports,
                        Action.ACCEPT,
                        policy,
                        number,
                    )
                    for policy in own
                    for number, rule in enumerate(policy.rules_for(direction) or ())
                    for peer in rule.peers
                ]
            )
            for direction, own in isolating.items()
        },
    )


def _compile_tier(policies: tuple[ClusterPolicy, ...]) -> TierUnit:
    return TierUnit(
        {
            direction: Table(
                [
                    Term(policy.subject, peer, rule.ports, rule.action, policy, number)
                    for policy in policies
                    for number, rule in enumerate(policy.rules_for(direction))
                    for peer in rule.peers
                ]
            )
            for direction in Direction
        }
    )
