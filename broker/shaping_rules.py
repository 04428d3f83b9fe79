"""The rules of [shaping]: which limits a flow gets, by workload, peer network and port. Pure.

Counterpart: config_shaping.py, which reads them. Every rule that matches counts; the strictest
limit wins, so their order means nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from slim.broker.decisions import Direction
from slim.broker.endpoints import contains_any
from slim.broker.shaping import strictest

if TYPE_CHECKING:
    from slim.broker.decisions import FlowRequest, Identity
    from slim.broker.endpoints import Network
    from slim.broker.shaping import Shaping


@dataclass(frozen=True, slots=True)
class Selector:
    """Which workloads of this host are meant; what is empty means all."""

    workloads: frozenset[str] = frozenset()
    namespaces: frozenset[str] = frozenset()
    labels: frozenset[tuple[str, str]] = frozenset()
    """The workload must have all of them."""

    def selects(self, workload: Identity) -> bool:
        return (
            (not self.workloads or workload.workload in self.workloads)
            and (not self.namespaces or workload.namespace in self.namespaces)
            and all(workload.labels.get(name) == value for name, value in self.labels)
        )


@dataclass(frozen=True, slots=True)
class ShapingRule:
    """Limits for each connection of the selected workloads."""

    name: str
    selector: Selector
    shaping: Shaping
    networks: tuple[Network, ...] = ()
    """Of the other end; none: anywhere."""
    ports: tuple[tuple[int, int], ...] = ()
    """Of the listener, at whichever end it is: first and last of each range; none: all."""

    def matches(self, request: FlowRequest) -> bool:
        if request.direction is Direction.EGRESS:
            own, peer = request.source, request.destination_address
        else:
            assert request.destination is not None
            own, peer = request.destination, request.source_address
        return (
            self.selector.selects(own)
            and (not self.networks or contains_any(self.networks, peer))
            and (not self.ports or any(first <= request.port <= last for first, last in self.ports))
        )


@dataclass(frozen=True, slots=True)
class ContainerLimit:
    """What each selected workload may send, all its connections together."""

    name: str
    selector: Selector
    send: int
    """In bytes per second."""


@dataclass(frozen=True, slots=True)
class ShapingRules:
    """All rules of one host."""

    rules: tuple[ShapingRule, ...] = ()
    containers: tuple[ContainerLimit, ...] = ()

    def shape(self, request: FlowRequest) -> Shaping | None:
        """The limits of one flow."""
        if not self.rules:
            return None
        return strictest(rule.shaping for rule in self.rules if rule.matches(request))

    def may_shape(self, workload: Identity | None) -> bool:
        """Whether any connection of the workload could be limited; None: of any workload."""
        return any(workload is None or rule.selector.selects(workload) for rule in self.rules)

    def container_rate(self, workload: Identity) -> int | None:
        """What the whole workload may send, in bytes per second; None: without limit."""
        rates = [limit.send for limit in self.containers if limit.selector.selects(workload)]
        return min(rates, default=None)
