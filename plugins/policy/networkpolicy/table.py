"""Terms in order, and the first of them that applies to a flow.

A term is a subject, one peer of a rule and the rule's ports: it applies if all three match. Finding
it is the intersection of three sets, whatever the number of terms.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from slim.plugins.policy.networkpolicy.labels import bits_of, lowest
from slim.plugins.policy.networkpolicy.matching import MemberIndex, PeerIndex, PortIndex

if TYPE_CHECKING:
    from collections.abc import Sequence

    from slim.broker.plugin_api import Address
    from slim.plugins.policy.networkpolicy.labels import Bits
    from slim.plugins.policy.networkpolicy.matching import Member
    from slim.plugins.policy.networkpolicy.model import (
        Action,
        Peer,
        PodPeer,
        Policy,
        Port,
        Protocol,
    )


@dataclass(frozen=True, slots=True)
class Term:
    subject: PodPeer
    peer: Peer
    ports: tuple[Port, ...]
    action: Action
    policy: Policy
    rule: int
    """Index of the rule in the policy's list for its direction."""


@dataclass(frozen=True, slots=True)
class Flow:
    """What is asked of a table of one direction."""

    subject: Member
    """The workload that the policy is about."""
    peer: Member | None
    """None: an endpoint that nobody brokers."""
    peer_address: Address
    protocol: Protocol
    port: int
    destination: Member | None
    """Whichever of the two the connection goes to: it declares the ports by name."""


@dataclass(frozen=True, slots=True)
class Candidates:
    """What may apply to a flow whose destination is not known."""

    actions: frozenset[Action | None]
    """Of the term that applies, whoever it is; None: that no term applies is possible."""
    named: Term | None
    """To be named: one that applies in any case if there is one, else the first that may."""


class Table:
    """Terms of one direction and tier, in the order in which they apply."""

    def __init__(self, terms: Sequence[Term]) -> None:
        self.terms = tuple(terms)
        numbered = [*enumerate(self.terms)]
        self._subjects = MemberIndex({number: term.subject for number, term in numbered})
        self._peers = PeerIndex({number: term.peer for number, term in numbered})
        self._ports = PortIndex({number: term.ports for number, term in numbered})
        self._by_action = {
            action: bits_of(number for number, term in numbered if term.action is action)
            for action in {term.action for term in self.terms}
        }

    def find(self, flow: Flow) -> Term | None:
        """The first term that applies."""
        found = self._subjects.matching(flow.subject)
        if found:
            found &= self._peers.matching(flow.peer, flow.peer_address)
        if found:
            names = flow.destination.ports if flow.destination is not None else {}
            found &= self._ports.matching(flow.protocol, flow.port, names)
        return self.terms[lowest(found)] if found else None

    def find_candidates(self, flow: Flow) -> Candidates:
        """As find, for a destination of which only the address is known; `flow.peer` is nobody."""
        subject = self._subjects.matching(flow.subject)
        sure = (
            subject
            & self._peers.matching(None, flow.peer_address)
            & self._ports.matching(flow.protocol, flow.port, {})
        )
        maybe = (
            subject
            & self._peers.possible(flow.peer_address)
            & self._ports.possible(flow.protocol, flow.port)
        )
        if sure:
            # Nothing behind the first that applies in any case has a say.
            maybe &= (1 << (lowest(sure) + 1)) - 1
        actions: set[Action | None] = {
            action for action, members in self._by_action.items() if members & maybe
        }
        if not sure:
            actions.add(None)
        named = self.terms[lowest(sure or maybe)] if maybe else None
        return Candidates(frozenset(actions), named)

    def selecting(self, subject: Member) -> Bits:
        """The terms about a workload."""
        return self._subjects.matching(subject)

    def has_action(self, subject: Member, action: Action) -> bool:
        return bool(self._subjects.matching(subject) & self._by_action.get(action, 0))

    def takes_all(self, subject: Member) -> bool:
        """Whether one term applies to every flow of the workload."""
        return bool(self._subjects.matching(subject) & self._peers.anybody & self._ports.anything)
