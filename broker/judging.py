"""What policy says now of flows and connections that it allowed before. Pure, but for the plugins.

The questions are those of resolver.py and inbound.py, asked again: whoever would be refused now
does not stay. One Judge is for one policy epoch, and remembers its verdicts.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from slim.broker.decisions import PLAIN_PEER, Direction, FlowRequest, Verdict
from slim.broker.endpoints import from_packed16, packed16

if TYPE_CHECKING:
    from slim.broker.connections import ConnectionRecord
    from slim.broker.decisions import Identity
    from slim.broker.endpoints import Address, Endpoint
    from slim.broker.registry import Registry, Workload
    from slim.broker.sources import Sources

NOT_BROKERED = "not-brokered"
"""The reason of a connection whose peer has no slimd (resolver)."""
_ALLOWED = Verdict(allow=True, rule="")


class Ingress(NamedTuple):
    """An ingress question: everything that a verdict about an inbound flow depends on."""

    workload: int
    destination: bytes
    port: int
    peer: str
    source: bytes


@dataclass(slots=True)
class Judge:
    registry: Registry
    sources: Sources
    _ingress: dict[Ingress, Verdict] = field(default_factory=dict)
    _egress: dict[tuple[int, bytes, bytes, int, str, bool], Verdict] = field(default_factory=dict)
    _local: dict[bytes, Identity | None] = field(default_factory=dict)

    def ingress(self, question: Ingress) -> Verdict:
        """May that source reach that listener?

        A source that nobody remembers is refused where anything can be: it cannot be judged.
        """
        verdict = self._ingress.get(question)
        if verdict is None:
            verdict = self._ingress[question] = self._judge_ingress(question)
        return verdict

    def connection(self, record: ConnectionRecord, source: bytes) -> Verdict:
        """May the connection stay? `source` is the packed overlay address at this end.

        Asked of many thousand connections in a row: a question asked before costs 1 us.
        """
        workload = self.registry.workloads.get(record.workload)
        if workload is None or record.path == "denied":
            return _ALLOWED
        if record.direction == "out":
            return self._out(workload, record, source)
        if record.path == "fallback":
            return self._plain_peer(workload, record.peer_endpoint().address)
        address, port = record.local
        return self.ingress(
            Ingress(record.workload, address, port, record.peer_host, record.peer[0])
        )

    def _judge_ingress(self, question: Ingress) -> Verdict:
        workload = self.registry.workloads.get(question.workload)
        if workload is None:
            # Its connections end with it; a flow to it must admit nobody.
            return Verdict(allow=False, rule="the workload is gone")
        identity = self.sources.get(question.peer, question.source)
        if identity is None:
            return Verdict(not workload.state.isolated_ingress, "identity of the source unknown")
        return self.registry.plugins.decide(
            FlowRequest(
                direction=Direction.INGRESS,
                source=identity,
                source_address=from_packed16(question.source),
                destination=workload.identity,
                destination_address=from_packed16(question.destination),
                port=question.port,
            )
        )

    def _plain_peer(self, workload: Workload, peer: Address) -> Verdict:
        """As context.admits_plain."""
        if (
            not workload.state.isolated_ingress
            or peer.is_loopback
            or packed16(peer) in workload.state.addresses
        ):
            return _ALLOWED
        return Verdict(allow=False, rule="plain peer of an isolated workload")

    def _out(self, workload: Workload, record: ConnectionRecord, source: bytes) -> Verdict:
        is_plain = record.path == "fallback" and record.reason == NOT_BROKERED
        key = (record.workload, source, *record.peer, record.peer_host, is_plain)
        verdict = self._egress.get(key)
        if verdict is None:
            own, to = from_packed16(source), record.peer_endpoint()
            identity = self._identity(record.peer_host, to.address)
            verdict = self._judge_egress(workload, own, to, identity)
            if verdict.provisional and record.path == "fast":
                # On the overlay: its slimd is asked again (rechecking).
                verdict = Verdict(allow=False, rule="identity of the destination unknown")
            if verdict.allow and is_plain:
                verdict = self._judge_egress(workload, own, to, PLAIN_PEER)
            self._egress[key] = verdict
        return verdict

    def _judge_egress(
        self, workload: Workload, source: Address, to: Endpoint, destination: Identity | None
    ) -> Verdict:
        return self.registry.plugins.decide(
            FlowRequest(
                direction=Direction.EGRESS,
                source=workload.identity,
                source_address=source,
                destination=destination,
                destination_address=to.address,
                port=to.port,
            )
        )

    def _identity(self, host: str, address: Address) -> Identity | None:
        """Of a workload of this host, or what its own host said of it; None: not known."""
        packed = packed16(address)
        if packed not in self._local:
            local = self.registry.by_address(address)
            self._local[packed] = local.identity if local is not None else None
        return self._local[packed] or self.sources.get(host, packed)
