"""The specifications of NetworkPolicy and ClusterNetworkPolicy, read word by word. Slow on purpose.

What the engine of the networkpolicy plugin is compared with. Nothing is compiled, indexed or
remembered: every question looks at every policy.
Sources: k8s.io/api/networking/v1 types.go; sigs.k8s.io/network-policy-api v1alpha2 types.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from slim.broker.plugin_api import Direction
from slim.plugins.policy.networkpolicy.model import (
    Action,
    AnyPeer,
    AnyPort,
    BlockPeer,
    ClusterPolicy,
    NamedPort,
    Namespace,
    NetworkPolicy,
    NumberedPorts,
    Operator,
    PodPeer,
    Requirement,
    Tier,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from slim.broker.plugin_api import Address
    from slim.plugins.policy.networkpolicy.model import (
        AllowRule,
        Peer,
        Port,
        Protocol,
        Resource,
        Selector,
        TierRule,
    )


@dataclass(frozen=True, slots=True)
class Someone:
    """One end; `namespace` is None for an endpoint that is no workload."""

    namespace: str | None
    labels: Mapping[str, str]
    address: Address
    ports: Mapping[tuple[Protocol, str], int]


@dataclass(frozen=True, slots=True)
class Question:
    direction: Direction
    source: Someone
    destination: Someone
    protocol: Protocol
    port: int

    @property
    def subject(self) -> Someone:
        return self.source if self.direction is Direction.EGRESS else self.destination

    @property
    def peer(self) -> Someone:
        return self.destination if self.direction is Direction.EGRESS else self.source


def is_allowed(resources: Sequence[Resource], question: Question) -> bool:
    admin = _tier(resources, Tier.ADMIN, question)
    if admin in (Action.ACCEPT, Action.DENY):
        return admin is Action.ACCEPT
    selecting = [
        policy
        for policy in resources
        if isinstance(policy, NetworkPolicy)
        and policy.namespace == question.subject.namespace
        and policy.rules_for(question.direction) is not None
        and selects(policy.pods, question.subject.labels)
    ]
    if selecting:
        return any(
            _rule_matches(resources, rule, question)
            for policy in selecting
            for rule in policy.rules_for(question.direction) or ()
        )
    return _tier(resources, Tier.BASELINE, question) is not Action.DENY


def _tier(resources: Sequence[Resource], tier: Tier, question: Question) -> Action | None:
    """What the first rule that matches says, by priority, then name, then place in the policy."""
    policies = [each for each in resources if isinstance(each, ClusterPolicy) and each.tier is tier]
    for policy in sorted(policies, key=lambda each: (each.priority, each.name)):
        if not _is_peer(resources, policy.subject, question.subject):
            continue
        for rule in policy.rules_for(question.direction):
            if _rule_matches(resources, rule, question):
                return rule.action
    return None


def _rule_matches(
    resources: Sequence[Resource], rule: AllowRule | TierRule, question: Question
) -> bool:
    return any(_is_peer(resources, peer, question.peer) for peer in rule.peers) and any(
        _is_port(port, question) for port in rule.ports
    )


def _is_peer(resources: Sequence[Resource], peer: Peer, someone: Someone) -> bool:
    match peer:
        case AnyPeer():
            return True
        case BlockPeer():
            return someone.address in peer.network and not any(
                someone.address in network for network in peer.excluded
            )
        case PodPeer():
            if someone.namespace is None:
                return False
            if isinstance(peer.namespaces, str):
                in_namespace = someone.namespace == peer.namespaces
            else:
                labels = _namespace_labels(resources, someone.namespace)
                in_namespace = selects(peer.namespaces, labels)
            return in_namespace and selects(peer.pods, someone.labels)


def _namespace_labels(resources: Sequence[Resource], name: str) -> dict[str, str]:
    labels = {"kubernetes.io/metadata.name": name}
    for each in resources:
        if isinstance(each, Namespace) and each.name == name:
            labels |= dict(each.labels)
    return labels


def _is_port(port: Port, question: Question) -> bool:
    match port:
        case AnyPort():
            return True
        case NumberedPorts():
            return port.protocol is question.protocol and port.first <= question.port <= port.last
        case NamedPort():
            return (
                port.protocol in (None, question.protocol)
                and question.destination.ports.get((question.protocol, port.name)) == question.port
            )


def selects(selector: Selector, labels: Mapping[str, str]) -> bool:
    return all(_holds(each, labels) for each in selector.requirements)


def _holds(requirement: Requirement, labels: Mapping[str, str]) -> bool:
    match requirement.operator:
        case Operator.IN:
            return requirement.key in labels and labels[requirement.key] in requirement.values
        case Operator.NOT_IN:
            # A key that is absent is not in.
            return not (requirement.key in labels and labels[requirement.key] in requirement.values)
        case Operator.EXISTS:
            return requirement.key in labels
        case Operator.DOES_NOT_EXIST:
            return requirement.key not in labels
