"""hypothesis strategies: small worlds of policies and workloads, in which most rules matter."""

from __future__ import annotations

import ipaddress
import itertools
from typing import TYPE_CHECKING

from hypothesis import strategies as st

from slim.broker.plugin_api import Direction
from slim.plugins.policy.networkpolicy.model import (
    Action,
    AllowRule,
    AnyPeer,
    AnyPort,
    BlockPeer,
    ClusterPolicy,
    Mode,
    NamedPort,
    Namespace,
    NetworkPolicy,
    NumberedPorts,
    Operator,
    Origin,
    PodPeer,
    Protocol,
    Requirement,
    Selector,
    Tier,
    TierRule,
)
from support.policy_specification import Question, Someone

if TYPE_CHECKING:
    from collections.abc import Iterator

    from slim.broker.plugin_api import Network

ORIGIN = Origin("policies.yaml", 1, 1)
KEYS, VALUES = ("app", "tier", "x"), ("a", "b", "")
NAMESPACES = ("shop", "data", "far")
ADDRESSES = [
    ipaddress.ip_address(text)
    for text in ("10.0.0.1", "10.0.0.2", "10.0.1.1", "10.1.0.1", "fd00::1", "fd00:1::1")
]
PORTS = (79, 80, 81, 443)
NAMES = ("http", "dns")

labels = st.dictionaries(st.sampled_from(KEYS), st.sampled_from(VALUES))


@st.composite
def requirements(draw: st.DrawFn) -> Requirement:
    operator = draw(st.sampled_from(Operator))
    values: frozenset[str] = frozenset()
    if operator in (Operator.IN, Operator.NOT_IN):
        values = draw(st.frozensets(st.sampled_from(VALUES), min_size=1))
    return Requirement(draw(st.sampled_from(KEYS)), operator, values)


selectors = st.builds(lambda items: Selector(tuple(items)), st.lists(requirements(), max_size=3))


def _inside(network: Network) -> st.SearchStrategy[Network]:
    longest = min(network.max_prefixlen, network.prefixlen + 24)
    return st.tuples(st.integers(network.prefixlen + 1, longest), st.sampled_from(ADDRESSES)).map(
        lambda drawn: ipaddress.ip_network(
            (drawn[1] if drawn[1] in network else network.network_address, drawn[0]), strict=False
        )
    )


@st.composite
def blocks(draw: st.DrawFn) -> BlockPeer:
    network = ipaddress.ip_network(
        draw(st.sampled_from(["0.0.0.0/0", "10.0.0.0/8", "10.0.0.0/24", "::/0", "fd00::/32"]))
    )
    return BlockPeer(network, tuple(draw(st.lists(_inside(network), max_size=2))))


members = st.builds(PodPeer, st.one_of(st.sampled_from(NAMESPACES), selectors), selectors)
peers = st.one_of(members, members, blocks(), st.just(AnyPeer()))


@st.composite
def numbered_ports(draw: st.DrawFn) -> NumberedPorts:
    first = draw(st.sampled_from(PORTS))
    last = draw(st.sampled_from([port for port in PORTS if port >= first]))
    return NumberedPorts(draw(st.sampled_from(Protocol)), first, last)


ports = st.one_of(
    st.just(AnyPort()),
    numbered_ports(),
    st.builds(NumberedPorts, st.sampled_from(Protocol)),
    st.builds(NamedPort, st.sampled_from(NAMES), st.one_of(st.none(), st.sampled_from(Protocol))),
)


def _some(items: st.SearchStrategy, least: int = 1) -> st.SearchStrategy:
    return st.lists(items, min_size=least, max_size=3).map(tuple)


allow_rules = st.builds(AllowRule, _some(peers), _some(ports))
tier_rules = st.builds(TierRule, st.sampled_from(Action), _some(peers, 0), _some(ports))


@st.composite
def network_policies(draw: st.DrawFn, name: str) -> NetworkPolicy:
    directions = draw(st.sampled_from([[Direction.INGRESS], [Direction.EGRESS], [*Direction]]))
    return NetworkPolicy(
        name=name,
        namespace=draw(st.sampled_from(NAMESPACES)),
        pods=draw(selectors),
        rules=tuple((each, draw(_some(allow_rules, 0))) for each in directions),
        mode=Mode.ENFORCE,
        origin=ORIGIN,
    )


@st.composite
def cluster_policies(draw: st.DrawFn, name: str) -> ClusterPolicy:
    return ClusterPolicy(
        name=name,
        tier=draw(st.sampled_from(Tier)),
        priority=draw(st.integers(0, 3)),
        subject=PodPeer(draw(selectors), draw(selectors)),
        ingress=draw(_some(tier_rules, 0)),
        egress=draw(_some(tier_rules, 0)),
        mode=Mode.ENFORCE,
        origin=ORIGIN,
    )


@st.composite
def namespaces(draw: st.DrawFn, name: str) -> Namespace:
    own = {**draw(labels), "kubernetes.io/metadata.name": name}
    return Namespace(name=name, labels=tuple(sorted(own.items())), origin=ORIGIN)


@st.composite
def worlds(draw: st.DrawFn) -> list[NetworkPolicy | ClusterPolicy | Namespace]:
    """Policies of all kinds, with names of their own, and documents for some namespaces."""
    world: list[NetworkPolicy | ClusterPolicy | Namespace] = [
        draw(network_policies(f"np-{number}")) for number in range(draw(st.integers(0, 5)))
    ]
    world += [draw(cluster_policies(f"cnp-{number}")) for number in range(draw(st.integers(0, 3)))]
    world += [draw(namespaces(name)) for name in NAMESPACES if draw(st.booleans())]
    return world


def _ports_of(protocols: st.SearchStrategy[Protocol]) -> st.SearchStrategy:
    return st.dictionaries(
        st.tuples(protocols, st.sampled_from(NAMES)), st.sampled_from(PORTS), max_size=3
    )


someones = st.builds(
    Someone,
    st.sampled_from(NAMESPACES),
    labels,
    st.sampled_from(ADDRESSES),
    _ports_of(st.sampled_from(Protocol)),
)
strangers = st.builds(Someone, st.none(), st.just({}), st.sampled_from(ADDRESSES), st.just({}))


def questions(ends: list[Someone]) -> Iterator[Question]:
    """Everything that can be asked between these ends, of each about itself, too."""
    for direction in Direction:
        for subject, peer in itertools.product(ends, repeat=2):
            if subject.namespace is None:
                continue
            for protocol, port in itertools.product((Protocol.TCP, Protocol.UDP), (80, 81)):
                pair = (subject, peer) if direction is Direction.EGRESS else (peer, subject)
                yield Question(direction, *pair, protocol, port)


groups = st.builds(
    lambda ends, stranger: [*ends, stranger],
    st.lists(someones, min_size=2, max_size=4),
    strangers,
)
"""Some workloads and an endpoint outside."""
