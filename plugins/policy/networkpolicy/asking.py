"""Questions about documents that are not in force: what would a connection get, what changes.

The same engine and the same identities as slimd has, without a slimd.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from slim.broker.plugin_api import PLAIN_PEER, Direction, FlowRequest, Identity, parse_address
from slim.plugins.policy.networkpolicy.identities import ports_of
from slim.plugins.policy.networkpolicy.model import (
    ClusterPolicy,
    NamedPort,
    NetworkPolicy,
    NumberedPorts,
    Protocol,
)
from slim.plugins.policy.networkpolicy.plugin import Plugin

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from slim.broker.plugin_api import Address, Verdict
    from slim.plugins.policy.networkpolicy.compiler import Compiled
    from slim.plugins.policy.networkpolicy.model import Port, Resource

NO_ADDRESS = parse_address("0.0.0.0")
NO_OTHER_ADDRESS = parse_address("0.0.0.1")
"""Two workloads of which no address was told are two all the same."""
MAX_PORT = 65535


class ListedContainer(msgspec.Struct, frozen=True):
    """A container, of what `slimctl ps --json` prints."""

    workload: str
    namespace: str
    labels: dict[str, str]
    addresses: list[str]


@dataclass(frozen=True, slots=True)
class End:
    """One end of a connection that is asked about."""

    name: str
    identity: Identity
    address: Address


@dataclass(frozen=True, slots=True)
class Answer:
    """What both ends say about one connection; None: no policy has anything to say."""

    egress: Verdict | None
    ingress: Verdict | None

    @property
    def is_allowed(self) -> bool:
        return all(each is None or each.allow for each in (self.egress, self.ingress))


@dataclass(frozen=True, slots=True)
class Change:
    """Connections whose verdict differs between two sets of documents."""

    source: str
    destination: str
    first_port: int
    last_port: int
    before: Answer
    after: Answer


def read_end(text: str) -> End:
    """`NAMESPACE/KEY=VALUE,...@ADDRESS`, or an address alone; ValueError says what is wrong."""
    if not text or not text.isprintable():
        raise ValueError("an end is a namespace with labels, or an address")
    try:
        return End(text, PLAIN_PEER, parse_address(text))
    except ValueError:
        pass
    who, at, address = text.partition("@")
    namespace, slash, listed = who.partition("/")
    labels: dict[str, str] = {}
    for pair in listed.split(",") if slash else ():
        key, separator, value = pair.partition("=")
        if not separator or not key:
            raise ValueError(f"{pair!r} is not key=value, as in shop/app=web")
        if labels.setdefault(key, value) != value:
            raise ValueError(f"label {key!r} is given twice")
    if not namespace:
        raise ValueError("the namespace is missing, as in shop/app=web")
    return End(
        text,
        Identity(workload=who, namespace=namespace, labels=labels),
        parse_address(address) if at else NO_ADDRESS,
    )


def ends_of(listed: Iterable[ListedContainer]) -> list[End]:
    """One end for every address of a workload: containers of one are the same to policy."""
    seen: set[tuple[str, str, str]] = set()
    ends = []
    for each in listed:
        for address in each.addresses:
            key = (each.namespace, each.workload, address)
            if key in seen:
                continue
            seen.add(key)
            identity = Identity(each.workload, each.namespace, each.labels)
            name = f"{each.namespace}/{each.workload} {address}"
            ends.append(End(name, identity, parse_address(address)))
    return ends


class Questions:
    """One set of compiled documents, asked as slimd asks."""

    def __init__(self, compiled: Compiled) -> None:
        self._plugin = Plugin.of(compiled)

    def ask(self, source: End, destination: End, port: int) -> Answer:
        to = destination.address
        if to == source.address == NO_ADDRESS:
            to = NO_OTHER_ADDRESS
        return Answer(
            *(
                self._plugin.slim_decide(
                    FlowRequest(
                        direction=direction,
                        source=source.identity,
                        source_address=source.address,
                        destination=destination.identity,
                        destination_address=to,
                        port=port,
                    )
                )
                for direction in (Direction.EGRESS, Direction.INGRESS)
            )
        )


def find_changes(
    before: Questions, after: Questions, ends: Sequence[End], resources: Iterable[Resource]
) -> Iterator[Change]:
    """Every pair of ends and range of ports whose verdict, or audit, is another afterwards.

    `resources` are those of both: only where one of their ranges begins or ends can a verdict
    change, so one port of each range stands for all.
    """
    starts = _range_starts(resources, ends)
    for source in ends:
        for destination in ends:
            is_own = source.identity == destination.identity
            if is_own or source.address.version != destination.address.version:
                continue
            last: Change | None = None
            for first, following in zip(starts, [*starts[1:], MAX_PORT + 1], strict=True):
                old = before.ask(source, destination, first)
                new = after.ask(source, destination, first)
                if _seen(old) == _seen(new):
                    if last is not None:
                        yield last
                    last = None
                elif last is not None and (last.before, last.after) == (old, new):
                    # The next range, and the same change.
                    last = Change(
                        source.name, destination.name, last.first_port, following - 1, old, new
                    )
                else:
                    if last is not None:
                        yield last
                    last = Change(source.name, destination.name, first, following - 1, old, new)
            if last is not None:
                yield last


def _seen(answer: Answer) -> tuple[bool, bool]:
    """What a program and its operator see of it."""
    audited = any(each is not None and each.audit for each in (answer.egress, answer.ingress))
    return answer.is_allowed, audited


def _range_starts(resources: Iterable[Resource], ends: Iterable[End]) -> list[int]:
    starts = {1}
    for port in _ports(resources):
        if isinstance(port, NumberedPorts):
            starts |= {port.first, port.last + 1}
        elif isinstance(port, NamedPort):
            for end in ends:
                number = ports_of(end.identity).get((Protocol.TCP, port.name))
                if number is not None:
                    starts |= {number, number + 1}
    return sorted(each for each in starts if 1 <= each <= MAX_PORT)


def _ports(resources: Iterable[Resource]) -> Iterator[Port]:
    for each in resources:
        if isinstance(each, NetworkPolicy | ClusterPolicy):
            for direction in Direction:
                for rule in each.rules_for(direction) or ():
                    yield from rule.ports
