"""From what Slim knows of an endpoint to what policies see of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from slim.broker.plugin_api import PLAIN_PEER, named_ports
from slim.plugins.policy.networkpolicy.model import Protocol

if TYPE_CHECKING:
    from slim.broker.plugin_api import Identity
    from slim.plugins.policy.networkpolicy.engine import Engine
    from slim.plugins.policy.networkpolicy.matching import Labels, Member, PortName

MAX_KNOWN = 16_384


class Members:
    """The workloads that were asked about; bounded, since peers say what labels there are."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._known: dict[tuple[str, Labels], Member] = {}

    def of(self, identity: Identity) -> Member | None:
        """None for an endpoint that nobody brokers."""
        if identity is PLAIN_PEER or identity == PLAIN_PEER:
            return None
        key = (identity.namespace, frozenset(identity.labels.items()))
        member = self._known.get(key)
        if member is None:
            member = self._engine.member(*key, ports_of(identity))
            if len(self._known) >= MAX_KNOWN:
                self._known.clear()
            self._known[key] = member
        return member


def ports_of(identity: Identity) -> dict[PortName, int]:
    """Slim brokers TCP only, and so are the ports that a workload can declare."""
    try:
        named = named_ports(identity.labels)
    except ValueError:
        # Another host's; no slimd of ours lets such a label in.
        return {}
    return {(Protocol.TCP, name): port for name, port in named.items()}
