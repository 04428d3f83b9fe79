"""Answering Resolve: may that source reach this listener, and by which flow is it known?

Ingress policy is decided here, with the source's identity from the authenticated channel. An
inbound flow is made only for an allowed source, and the answer leaves only after traps has
acknowledged the flow, so a record never arrives before what admits it.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Protocol

from slim.broker.decisions import Direction, FlowRequest, Identity
from slim.broker.endpoints import Address, Endpoint, from_packed16, packed16
from slim.broker.errors import ControlError
from slim.broker.events import SourceDenied
from slim.broker.local import messages
from slim.broker.peers import messages as peer_messages
from slim.broker.registry import host_endpoint

if TYPE_CHECKING:
    from collections.abc import Callable

    from slim.broker.decisions import Verdict
    from slim.broker.registry import Registry, Workload
    from slim.broker.sources import Sources

log = logging.getLogger(__name__)

NO_LISTENER_LIFETIME_MS = 30_000
DENIED_LIFETIME_MS = 10_000
INBOUND_MARGIN_MS = 60_000
MAX_ASKERS = 4096
MAX_FLOWS = 65_536
REUSE_S = 5.0
MAX_EPOCHS = 8
"""How often one question is answered anew because policy changed meanwhile."""


class TrapsPort(Protocol):
    """What answering needs of the link to traps."""

    async def request(self, make: Callable[[int], messages.ToTraps]) -> None: ...


class Inbound:
    """Answers Resolve for this host's workloads, and remembers who asked."""

    def __init__(
        self, registry: Registry, sources: Sources, traps: TrapsPort, *, lifetime_s: int
    ) -> None:
        self._registry = registry
        self.sources = sources
        self._traps = traps
        self.lifetime_s = lifetime_s
        self.on_identity_changed: Callable[[], None] = lambda: None
        """A workload elsewhere is another than it was: what goes between it and us is to be judged
        again."""
        self._askers: dict[tuple[int, int], dict[str, set[Address]]] = defaultdict(dict)
        """(workload, port) -> peer host -> the addresses it asked about."""
        self._flows: dict[
            tuple[str, bytes, bytes, int, int, Verdict, int | None], tuple[int, float]
        ] = {}
        self.counters: Counter[str] = Counter()

    async def answer(self, peer: str, asked: peer_messages.Resolve) -> peer_messages.ResolveAnswer:
        """The answer to a peer whose right to speak for the source was checked; never raises."""
        identity = Identity(asked.workload, asked.namespace, asked.labels)
        if self.sources.remember(peer, asked.source, identity):
            self.on_identity_changed()
        for _ in range(MAX_EPOCHS):
            epoch = self._registry.epoch
            answer = await self._answer(peer, asked)
            if epoch == self._registry.epoch:
                return answer
        return peer_messages.ResolvedDenied(asked.token, 1000, "policy changes all the time")

    async def _answer(self, peer: str, asked: peer_messages.Resolve) -> peer_messages.ResolveAnswer:
        destination = from_packed16(asked.destination)
        workload = self._registry.by_address(destination)
        if workload is None:
            return peer_messages.ResolvedUnknown(asked.token)
        verdict = self._registry.plugins.decide(
            FlowRequest(
                direction=Direction.INGRESS,
                source=Identity(asked.workload, asked.namespace, asked.labels),
                source_address=from_packed16(asked.source),
                destination=workload.identity,
                destination_address=destination,
                port=asked.port,
            )
        )
        if not verdict.allow:
            self.counters["ingress_denied"] += 1
            self._registry.publish(
                SourceDenied(
                    workload=workload.state.name,
                    overlay_local=str(Endpoint(destination, asked.port)),
                    peer_host=peer,
                    source_workload=f"{asked.namespace}/{asked.workload}",
                    source_address=str(from_packed16(asked.source)),
                    rule=verdict.rule,
                )
            )
            return peer_messages.ResolvedDenied(asked.token, DENIED_LIFETIME_MS, verdict.rule)
        if verdict.audit:
            self.counters["ingress_would_deny"] += 1
            self._registry.note_audit(
                verdict,
                f"{asked.namespace}/{asked.workload} to {Endpoint(destination, asked.port)}",
            )
        self._remember(peer, workload.state.cookie, asked.port, destination)
        listener = workload.listener_for(destination, asked.port)
        if listener is None:
            return self._overlay(asked, "no-listener", NO_LISTENER_LIFETIME_MS, workload, verdict)
        try:
            flow, lifetime_ms = await self._admit(peer, asked, workload.state.cookie, verdict)
        except ControlError as error:
            log.warning("no inbound flow for %s: %s", peer, error)
            return self._overlay(asked, "traps-down", 1000, workload, verdict)
        at_host, own = host_endpoint(listener), workload.identity
        return peer_messages.ResolvedFast(
            token=asked.token,
            host_address=packed16(at_host.address),
            host_port=at_host.port,
            flow=flow,
            lifetime_ms=lifetime_ms,
            isolated=workload.state.isolated_ingress,
            rule=verdict.text,
            workload=own.workload,
            namespace=own.namespace,
            labels=dict(own.labels),
            rate=verdict.shaping.receive if verdict.shaping else None,
        )

    def _overlay(
        self,
        asked: peer_messages.Resolve,
        reason: str,
        lifetime_ms: int,
        workload: Workload,
        verdict: Verdict,
    ) -> peer_messages.ResolvedOverlay:
        own = workload.identity
        return peer_messages.ResolvedOverlay(
            token=asked.token,
            reason=reason,
            lifetime_ms=lifetime_ms,
            isolated=workload.state.isolated_ingress,
            rule=verdict.text,
            workload=own.workload,
            namespace=own.namespace,
            labels=dict(own.labels),
        )

    async def _admit(
        self, peer: str, asked: peer_messages.Resolve, workload: int, verdict: Verdict
    ) -> tuple[int, int]:
        """An inbound flow that traps has acknowledged, and for how many ms it may be used.

        A young one for the same ends serves again: a peer that asks often makes one flow.
        """
        # What is limited depends on the verdict and on what the source asks for.
        key = (peer, asked.source, asked.destination, asked.port, workload, verdict, asked.rate)
        now, lifetime_ms = time.monotonic(), self.lifetime_s * 1000
        known = self._flows.get(key)
        if known is not None and now - known[1] < REUSE_S:
            return known[0], lifetime_ms - int((now - known[1]) * 1000)
        flow = secrets.randbits(32) or 1
        await self._traps.request(
            lambda token: messages.AddInboundFlow(
                token=token,
                flow=flow,
                peer=peer,
                workload=workload,
                destination=asked.destination,
                port=asked.port,
                source=asked.source,
                source_workload=f"{asked.namespace}/{asked.workload}"[:80],
                rule=verdict.text[:80],
                lifetime_ms=lifetime_ms + INBOUND_MARGIN_MS,
                shaping=verdict.shaping,
                peer_rate=asked.rate,
            )
        )
        self.counters["inbound_flows"] += 1
        if len(self._flows) >= MAX_FLOWS:
            self._flows.clear()
        self._flows[key] = (flow, now)
        return flow, lifetime_ms

    def forget_flows(self) -> None:
        """Policy changed: those in traps are judged by who changed it, and none serves again."""
        self._flows.clear()

    def forget_workload(self, workload: int) -> None:
        """Its inbound flows are gone in traps too."""
        for key in [key for key in self._flows if key[4] == workload]:
            del self._flows[key]

    def _remember(self, peer: str, workload: int, port: int, address: Address) -> None:
        if len(self._askers) < MAX_ASKERS or (workload, port) in self._askers:
            self._askers[workload, port].setdefault(peer, set()).add(address)

    def take_askers(self, workload: int, port: int) -> dict[str, set[Address]]:
        """Who must hear that the listener on the port came or went; they will ask again."""
        return self._askers.pop((workload, port), {})

    def take_all_askers(self, workload: int) -> dict[str, set[Address]]:
        """As take_askers, for every port of a workload that ends."""
        merged: dict[str, set[Address]] = defaultdict(set)
        for key in [key for key in self._askers if key[0] == workload]:
            for peer, addresses in self._askers.pop(key).items():
                merged[peer] |= addresses
        return merged
