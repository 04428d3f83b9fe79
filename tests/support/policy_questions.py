"""Asking the engine of the networkpolicy plugin, from documents as text."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from slim.broker.plugin_api import Direction, parse_address
from slim.plugins.policy.networkpolicy.compiler import compile_resources
from slim.plugins.policy.networkpolicy.engine import Outcome
from slim.plugins.policy.networkpolicy.loading import read_text
from slim.plugins.policy.networkpolicy.model import Protocol
from slim.plugins.policy.networkpolicy.table import Flow

if TYPE_CHECKING:
    from slim.broker.endpoints import Address
    from slim.plugins.policy.networkpolicy.engine import Decision, Engine
    from slim.plugins.policy.networkpolicy.matching import Member


@dataclass(frozen=True, slots=True)
class End:
    """One end of a connection; without a namespace nobody brokers it."""

    namespace: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    address: str = "10.77.1.5"
    ports: dict[tuple[str, str], int] = field(default_factory=dict)
    """(protocol, name) -> number."""

    def member(self, engine: Engine) -> Member | None:
        if not self.namespace:
            return None
        ports = {(Protocol(protocol), name): port for (protocol, name), port in self.ports.items()}
        return engine.member(self.namespace, frozenset(self.labels.items()), ports)


def engine_of(text: str | bytes) -> Engine:
    """The engine of one file that has no mistakes."""
    content = read_text("policies.yaml", text if isinstance(text, bytes) else text.encode())
    assert [str(each) for each in content.mistakes if not each.is_warning] == []
    return compile_resources(content.resources).enforced


def ask(
    engine: Engine,
    direction: Direction,
    source: End,
    destination: End,
    port: int = 80,
    protocol: str = "TCP",
) -> Decision | None:
    """What the engine decides."""
    ends = [(end.member(engine), parse_address(end.address)) for end in (source, destination)]
    return engine.decide(direction, flow_between(direction, ends[0], ends[1], port, protocol))


def flow_between(
    direction: Direction,
    source: tuple[Member | None, Address],
    destination: tuple[Member | None, Address],
    port: int,
    protocol: str,
) -> Flow:
    near, far = (source, destination) if direction is Direction.EGRESS else (destination, source)
    assert near[0] is not None
    return Flow(near[0], far[0], far[1], Protocol(protocol), port, destination[0])


def allows(decision: Decision | None) -> bool:
    return decision is None or decision.outcome is Outcome.ALLOW
