"""Which of many peers and ports match one endpoint: sets of numbers, kept for those asked before.

A number is that of a term (`table`): it matches if its subject, its peer and one of its ports do,
and each of the three is a set here. Caches are bounded: labels and addresses are what others say.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from slim.plugins.policy.networkpolicy.labels import Bits, LabelIndex, Packed, bits_of, pack, unpack
from slim.plugins.policy.networkpolicy.model import (
    AnyPeer,
    AnyPort,
    BlockPeer,
    NamedPort,
    NumberedPorts,
    PodPeer,
    Protocol,
    Selector,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from slim.broker.plugin_api import Address, Network
    from slim.plugins.policy.networkpolicy.model import Peer, Port

K = TypeVar("K")
V = TypeVar("V")
MAX_KNOWN = 16_384
Labels: TypeAlias = frozenset[tuple[str, str]]
PortName: TypeAlias = tuple[Protocol, str]


@dataclass(frozen=True, slots=True)
class Member:
    """A workload, as selectors see it."""

    namespace: str
    namespace_labels: Labels
    labels: Labels
    ports: Mapping[PortName, int] = field(default_factory=dict, compare=False)
    """The ports that it declares by name."""


class MemberIndex:
    """Which peers select a workload by labels."""

    def __init__(self, peers: Mapping[int, PodPeer]) -> None:
        by_name: dict[str, list[int]] = defaultdict(list)
        for number, peer in peers.items():
            if isinstance(peer.namespaces, str):
                by_name[peer.namespaces].append(number)
        self._by_name = {name: bits_of(numbers) for name, numbers in by_name.items()}
        self._by_namespace = LabelIndex(
            {
                number: peer.namespaces
                for number, peer in peers.items()
                if isinstance(peer.namespaces, Selector)
            }
        )
        self._by_labels = LabelIndex({number: peer.pods for number, peer in peers.items()})
        self._all = bits_of(peers)
        self._namespaces: dict[tuple[str, Labels], Bits] = {}
        self._labels: dict[Labels, Bits] = {}

    def matching(self, member: Member) -> Bits:
        where = (member.namespace, member.namespace_labels)
        namespaces = self._namespaces.get(where)
        if namespaces is None:
            namespaces = self._by_namespace.matching(dict(member.namespace_labels))
            namespaces |= self._by_name.get(member.namespace, 0)
            _keep(self._namespaces, where, namespaces)
        if not namespaces:
            return 0
        labels = self._labels.get(member.labels)
        if labels is None:
            labels = self._by_labels.matching(dict(member.labels))
            _keep(self._labels, member.labels, labels)
        return namespaces & labels

    def all(self) -> Bits:
        """What could match a workload of which nothing is known."""
        return self._all


class BlockIndex:
    """Which blocks hold an address."""

    def __init__(self, blocks: Mapping[int, BlockPeer]) -> None:
        inside: dict[Network, list[int]] = defaultdict(list)
        outside: dict[Network, list[int]] = defaultdict(list)
        for number, block in blocks.items():
            inside[block.network].append(number)
            for network in block.excluded:
                outside[network].append(number)
        self._inside = _by_prefix(inside)
        self._outside = _by_prefix(outside)
        self._known: dict[Address, Bits] = {}

    def matching(self, address: Address) -> Bits:
        if not self._inside:
            return 0
        found = self._known.get(address)
        if found is None:
            found = _holding(self._inside, address) & ~_holding(self._outside, address)
            _keep(self._known, address, found)
        return found


_Prefixes: TypeAlias = "dict[tuple[int, int], dict[int, Packed]]"
"""(IP version, bits behind the prefix) -> prefix -> numbers."""


def _by_prefix(networks: Mapping[Network, list[int]]) -> _Prefixes:
    found: _Prefixes = defaultdict(dict)
    for network, numbers in networks.items():
        rest = network.max_prefixlen - network.prefixlen
        found[network.version, rest][int(network.network_address) >> rest] = pack(numbers)
    return dict(found)


def _holding(prefixes: _Prefixes, address: Address) -> Bits:
    value, bits = int(address), 0
    for (version, rest), members in prefixes.items():
        if version == address.version:
            bits |= unpack(members.get(value >> rest, 0))
    return bits


class PeerIndex:
    """Which peers an endpoint is."""

    def __init__(self, peers: Mapping[int, Peer]) -> None:
        members: dict[int, PodPeer] = {}
        blocks: dict[int, BlockPeer] = {}
        anybody: list[int] = []
        for number, peer in peers.items():
            match peer:
                case AnyPeer():
                    anybody.append(number)
                case PodPeer():
                    members[number] = peer
                case BlockPeer():
                    blocks[number] = peer
        self.anybody = bits_of(anybody)
        self._members = MemberIndex(members)
        self._blocks = BlockIndex(blocks)

    def matching(self, member: Member | None, address: Address) -> Bits:
        """`member` is None for an endpoint that nobody brokers."""
        found = self.anybody | self._blocks.matching(address)
        return found if member is None else found | self._members.matching(member)

    def possible(self, address: Address) -> Bits:
        """What could match an endpoint of which only the address is known."""
        return self.anybody | self._blocks.matching(address) | self._members.all()


class PortIndex:
    """Which ports of rules a destination port is."""

    def __init__(self, ports: Mapping[int, tuple[Port, ...]]) -> None:
        anything: list[int] = []
        exact: dict[tuple[Protocol, int], list[int]] = defaultdict(list)
        ranges: dict[tuple[Protocol, int, int], list[int]] = defaultdict(list)
        named: dict[PortName, list[int]] = defaultdict(list)
        for number, port in ((number, port) for number, all_ in ports.items() for port in all_):
            match port:
                case AnyPort():
                    anything.append(number)
                case NumberedPorts() if port.first == port.last:
                    exact[port.protocol, port.first].append(number)
                case NumberedPorts():
                    ranges[port.protocol, port.first, port.last].append(number)
                case NamedPort():
                    for protocol in [port.protocol] if port.protocol else Protocol:
                        named[protocol, port.name].append(number)
        self.anything = bits_of(anything)
        self._exact = {key: pack(numbers) for key, numbers in exact.items()}
        self._ranges = [(*key, pack(numbers)) for key, numbers in ranges.items()]
        self._named = {key: pack(numbers) for key, numbers in named.items()}
        self._all_named = {protocol: bits_of(_members(named, protocol)) for protocol in Protocol}
        self._known: dict[tuple[Protocol, int], Bits] = {}

    def matching(self, protocol: Protocol, port: int, names: Mapping[PortName, int]) -> Bits:
        """`names` are the ports that the destination declares."""
        found = self._by_number(protocol, port)
        if self._named:
            for name, number in names.items():
                if number == port and name[0] is protocol:
                    found |= unpack(self._named.get(name, 0))
        return found

    def possible(self, protocol: Protocol, port: int) -> Bits:
        """What could match at a destination whose names for ports are not known."""
        return self._by_number(protocol, port) | self._all_named[protocol]

    def _by_number(self, protocol: Protocol, port: int) -> Bits:
        key = (protocol, port)
        found = self._known.get(key)
        if found is None:
            found = self.anything | unpack(self._exact.get(key, 0))
            for own, first, last, numbers in self._ranges:
                if own is protocol and first <= port <= last:
                    found |= unpack(numbers)
            _keep(self._known, key, found)
        return found


def _members(named: Mapping[PortName, list[int]], protocol: Protocol) -> Iterable[int]:
    return {number for key, numbers in named.items() if key[0] is protocol for number in numbers}


def _keep(known: dict[K, V], key: K, value: V) -> None:
    if len(known) >= MAX_KNOWN:
        known.clear()
    known[key] = value
