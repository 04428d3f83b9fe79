"""Policies as values: what the documents say, checked and with every default filled in.

Written by `reading`, compiled by `compiler`; the tests' slow reading of the specification works on
the same values. Nothing here refers to files, except where a policy came from.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

from slim.broker.plugin_api import Direction, Network

NAMESPACE_NAME_LABEL = "kubernetes.io/metadata.name"
"""The label that every namespace has, with its own name (Kubernetes 1.21)."""


class Operator(StrEnum):
    """Of a label selector's requirement (apimachinery meta/v1 LabelSelectorOperator)."""

    IN = "In"
    NOT_IN = "NotIn"
    EXISTS = "Exists"
    DOES_NOT_EXIST = "DoesNotExist"


@dataclass(frozen=True, slots=True)
class Requirement:
    key: str
    operator: Operator
    values: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Selector:
    """Requirements that must all hold; none: everything is selected.

    An entry of matchLabels is a requirement `In` with one value.
    """

    requirements: tuple[Requirement, ...] = ()


EVERYTHING = Selector()


@dataclass(frozen=True, slots=True)
class AnyPeer:
    """Every peer, also those outside Slim."""


@dataclass(frozen=True, slots=True)
class PodPeer:
    """Workloads by labels, of one namespace or of those that a selector matches."""

    namespaces: str | Selector
    """A namespace's name, or a selector for namespaces."""
    pods: Selector = EVERYTHING


@dataclass(frozen=True, slots=True)
class BlockPeer:
    """Addresses inside `network` and outside all of `excluded`."""

    network: Network
    excluded: tuple[Network, ...] = ()


Peer: TypeAlias = AnyPeer | PodPeer | BlockPeer


class Protocol(StrEnum):
    TCP = "TCP"
    UDP = "UDP"
    SCTP = "SCTP"


@dataclass(frozen=True, slots=True)
class AnyPort:
    """Every port of every protocol."""


@dataclass(frozen=True, slots=True)
class NumberedPorts:
    """Ports `first` to `last` of one protocol, both included."""

    protocol: Protocol
    first: int = 0
    last: int = 65535


@dataclass(frozen=True, slots=True)
class NamedPort:
    """The port that the destination declares by this name; without a protocol, of any."""

    name: str
    protocol: Protocol | None


Port: TypeAlias = AnyPort | NumberedPorts | NamedPort


class Mode(StrEnum):
    """Whether a policy decides, or is only watched for what it would deny."""

    ENFORCE = "enforce"
    AUDIT = "audit"


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a document was read."""

    file: str
    number: int
    """Of the document in the file, from 1."""
    line: int


@dataclass(frozen=True, slots=True)
class AllowRule:
    """One rule of a NetworkPolicy: any of the peers, on any of the ports."""

    peers: tuple[Peer, ...]
    ports: tuple[Port, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkPolicy:
    """networking.k8s.io/v1 NetworkPolicy; a direction that it does not isolate has no rules."""

    name: str
    namespace: str
    pods: Selector
    rules: tuple[tuple[Direction, tuple[AllowRule, ...]], ...]
    """For every direction that the policy isolates, in the order ingress, egress."""
    mode: Mode
    origin: Origin

    @property
    def title(self) -> str:
        return f"{self.namespace}/{self.name}"

    def rules_for(self, direction: Direction) -> tuple[AllowRule, ...] | None:
        """None: the policy does not isolate that direction."""
        return next((rules for own, rules in self.rules if own is direction), None)


class Tier(StrEnum):
    ADMIN = "Admin"
    BASELINE = "Baseline"


class Action(StrEnum):
    ACCEPT = "Accept"
    DENY = "Deny"
    PASS = "Pass"


@dataclass(frozen=True, slots=True)
class TierRule:
    """One rule of a ClusterNetworkPolicy; one that failed closed has other peers than written."""

    action: Action
    peers: tuple[Peer, ...]
    """Empty: the rule matches nothing."""
    ports: tuple[Port, ...]
    name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterPolicy:
    """policy.networking.k8s.io/v1alpha2 ClusterNetworkPolicy."""

    name: str
    tier: Tier
    priority: int
    subject: PodPeer
    ingress: tuple[TierRule, ...]
    egress: tuple[TierRule, ...]
    mode: Mode
    origin: Origin

    @property
    def title(self) -> str:
        return self.name

    def rules_for(self, direction: Direction) -> tuple[TierRule, ...]:
        return self.ingress if direction is Direction.INGRESS else self.egress


@dataclass(frozen=True, slots=True, kw_only=True)
class Namespace:
    """A Namespace document; its labels include the automatic one."""

    name: str
    labels: tuple[tuple[str, str], ...]
    origin: Origin


Policy: TypeAlias = NetworkPolicy | ClusterPolicy
Resource: TypeAlias = NetworkPolicy | ClusterPolicy | Namespace


def labels_of_namespace(name: str) -> tuple[tuple[str, str], ...]:
    """The labels of a namespace that no document describes."""
    return ((NAMESPACE_NAME_LABEL, name),)
