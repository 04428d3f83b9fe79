"""Resolving: from a LookUp of traps to a flow. The order is the order of design, connect 2 to 4.

    egress policy -> who owns the address -> Resolve at its slimd -> egress policy, now that it is
    known whose the destination is -> is the host path good -> answer

The answer for a destination on this host takes the same way, without the wire.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

from slim.broker.decisions import (
    PLAIN_PEER,
    Direction,
    FlowRequest,
    Identity,
    Verdict,
    text_of_both,
)
from slim.broker.endpoints import Address, Endpoint, from_packed16, packed16
from slim.broker.errors import ControlError
from slim.broker.local import messages
from slim.broker.peers import messages as peer_messages

if TYPE_CHECKING:
    from collections.abc import Callable

    from slim.broker.discovery import DiscoveryBackend, Located
    from slim.broker.inbound import Inbound
    from slim.broker.paths import HostPaths
    from slim.broker.peers.channel import PeerLinks
    from slim.broker.registry import Registry, Workload

log = logging.getLogger(__name__)

ASK_LIMIT_S = 5.0
UNKNOWN_LIFETIME_MS = 2_000
"""How long a question that found no answer is not asked again."""
DENIED_LIFETIME_MS = 10_000
NOT_BROKERED_LIFETIME_MS = 10_000
MAX_LOCATED = 65_536
MAX_EPOCHS = 8
"""How often one question is answered anew because policy changed meanwhile."""

Known: TypeAlias = peer_messages.ResolvedFast | peer_messages.ResolvedOverlay
FlowAnswer: TypeAlias = messages.FlowFast | messages.FlowOverlay | messages.FlowDenied


@dataclass(frozen=True, slots=True)
class Question:
    """A LookUp, with everything looked up that is local."""

    token: int
    workload: Workload
    source: Address
    destination: Endpoint
    verdict: Verdict


class Resolver:
    """Answers traps. Owns nothing but caches."""

    def __init__(
        self,
        registry: Registry,
        inbound: Inbound,
        paths: HostPaths,
        links: PeerLinks | None,
        *,
        host: str,
        deny_errno: int,
    ) -> None:
        self._registry = registry
        self._inbound = inbound
        self._paths = paths
        self._links = links
        self._host = host
        self.deny_errno = deny_errno
        self._located: dict[tuple[int, Address], tuple[Located, float]] = {}
        self.backends: list[DiscoveryBackend] = []
        """In the configured order; first hit wins."""
        self.counters: Counter[str] = Counter()

    async def look_up(self, asked: messages.LookUp) -> FlowAnswer:
        """The answer for traps, by the policy in force when it returns; never raises."""
        for _ in range(MAX_EPOCHS):
            epoch = self._registry.epoch
            answer = await self._look_up(asked)
            if epoch == self._registry.epoch:
                return answer
        return self._denied(asked.token, "policy changes all the time")

    async def _look_up(self, asked: messages.LookUp) -> FlowAnswer:
        workload = self._registry.workloads.get(asked.workload)
        destination = Endpoint(from_packed16(asked.destination), asked.port)
        if workload is None:
            return messages.FlowDenied(
                asked.token, self.deny_errno, UNKNOWN_LIFETIME_MS, "unknown workload"
            )
        source = (
            from_packed16(asked.source)
            if asked.source is not None
            else workload.source_for(destination.address)
        )
        if source is None or packed16(source) not in workload.state.addresses:
            # No route, or an address the kernel will refuse: its errno is the right one.
            return messages.FlowOverlay(asked.token, "no-source", UNKNOWN_LIFETIME_MS, "")
        verdict = self._registry.plugins.decide(self.egress_request(workload, source, destination))
        if not verdict.allow:
            return self._denied(asked.token, verdict.rule)
        question = Question(asked.token, workload, source, destination, verdict)
        if asked.retry:
            self._located.pop((workload.state.cookie, destination.address), None)
        return await self._resolve(question)

    def forget_located(self) -> None:
        """The backends are others now."""
        self._located.clear()

    def forget(self, address: Address) -> None:
        """What was found out about the address is no longer so."""
        for key in [key for key in self._located if key[1] == address]:
            del self._located[key]

    def egress_request(self, workload: Workload, source: Address, to: Endpoint) -> FlowRequest:
        """What policy of the source is asked first."""
        local = self._registry.by_address(to.address)
        return FlowRequest(
            direction=Direction.EGRESS,
            source=workload.identity,
            source_address=source,
            destination=local.identity if local is not None else None,
            destination_address=to.address,
            port=to.port,
        )

    async def _resolve(self, question: Question) -> FlowAnswer:
        if self._registry.by_address(question.destination.address) is not None:
            answer = await self._inbound.answer(
                self._host, self._resolve_message(question)(question.token)
            )
            return await self._flow(question, self._host, answer)
        located = await self.locate(question.workload.state.cookie, question.destination.address)
        if located is None:
            return self._unknown(question, "no-discovery")
        if located.control is None:
            return self._plain(question)
        if self._links is None:
            return self._unknown(question, "no-control-channel")
        try:
            async with asyncio.timeout(ASK_LIMIT_S):
                peer, answer = await self._links.ask(
                    located.host, located.control, self._resolve_message(question)
                )
        except (ControlError, OSError, TimeoutError) as error:
            self.counters["peer_unreachable"] += 1
            log.info("asking %s about %s: %s", located.control, question.destination, error)
            return self._unknown(question, "peer-unreachable")
        return await self._flow(question, peer, answer)

    def _resolve_message(self, question: Question) -> Callable[[int], peer_messages.Resolve]:
        identity = question.workload.identity
        shaping = question.verdict.shaping

        def make(token: int) -> peer_messages.Resolve:
            return peer_messages.Resolve(
                token=token,
                workload=identity.workload,
                namespace=identity.namespace,
                labels=dict(identity.labels),
                source=packed16(question.source),
                destination=packed16(question.destination.address),
                port=question.destination.port,
                rate=shaping.receive if shaping else None,
            )

        return make

    async def locate(self, workload: int, destination: Address) -> Located | None:
        """Ask the discovery backends; a find is kept for its lifetime."""
        key = (workload, destination)
        known = self._located.get(key)
        if known is not None and known[1] > time.monotonic():
            return known[0]
        for backend in self.backends:
            located = await backend.locate(workload, destination)
            if located is not None:
                if len(self._located) >= MAX_LOCATED:
                    self._located.clear()
                self._located[key] = (located, time.monotonic() + located.lifetime_s)
                return located
        return None

    async def _flow(
        self, question: Question, peer: str, answer: peer_messages.ResolveAnswer
    ) -> FlowAnswer:
        token = question.token
        match answer:
            case peer_messages.ResolvedDenied():
                return self._denied(token, answer.rule)
            case peer_messages.ResolvedUnknown():
                self.forget(question.destination.address)
                return self._unknown(question, "owner-unknown")
            case peer_messages.ResolvedOverlay() | peer_messages.ResolvedFast():
                verdict = self._judge_known(question, peer, answer)
                if not verdict.allow:
                    return self._denied(token, verdict.rule)
                self._note_audit(question, verdict)
                rule = text_of_both(verdict.text, answer.rule)
                question = replace(question, verdict=verdict)
                if isinstance(answer, peer_messages.ResolvedFast):
                    return await self._fast(question, peer, answer, rule)
                if answer.isolated:
                    # The overlay is no way round a policy: a plain peer is refused there.
                    return self._denied(token, "isolated destination without a host listener")
                return messages.FlowOverlay(
                    token, answer.reason, answer.lifetime_ms, rule, verdict.shaping
                )

    def _judge_known(self, question: Question, peer: str, answer: Known) -> Verdict:
        """Egress policy once more, now that it is known whose the destination is."""
        if peer == self._host:
            # It was known from the beginning.
            return question.verdict
        if not answer.workload:
            if not question.verdict.provisional:
                return question.verdict
            return Verdict(allow=False, rule=f"{peer} does not say whose the destination is")
        identity = Identity(answer.workload, answer.namespace, answer.labels)
        address = question.destination.address
        if self._inbound.sources.remember(peer, packed16(address), identity):
            self._inbound.on_identity_changed()
        egress = self.egress_request(question.workload, question.source, question.destination)
        return self._registry.plugins.decide(replace(egress, destination=identity))

    def _note_audit(self, question: Question, verdict: Verdict) -> None:
        if verdict.audit:
            self.counters["would_deny"] += 1
            own = question.workload.identity
            flow = f"{own.namespace}/{own.workload} to {question.destination}"
            self._registry.note_audit(verdict, flow)

    async def _fast(
        self, question: Question, peer: str, answer: peer_messages.ResolvedFast, rule: str
    ) -> FlowAnswer:
        endpoint = Endpoint(from_packed16(answer.host_address), answer.host_port)
        lawful = not answer.isolated and not question.workload.state.isolated_egress
        if not await self._paths.is_good(endpoint):
            if not lawful:
                return self._denied(question.token, f"host path to {endpoint} failed")
            return messages.FlowOverlay(
                question.token,
                "host-path-failed",
                UNKNOWN_LIFETIME_MS,
                rule,
                question.verdict.shaping,
            )
        return messages.FlowFast(
            token=question.token,
            source=packed16(question.source),
            host_address=answer.host_address,
            host_port=answer.host_port,
            flow=answer.flow,
            peer=peer,
            lifetime_ms=answer.lifetime_ms,
            fallback_lawful=lawful,
            rule=rule,
            shaping=question.verdict.shaping,
            peer_rate=answer.rate,
        )

    def _plain(self, question: Question) -> FlowAnswer:
        """Nobody brokers the address: policy is asked again, now that this is known."""
        verdict = self._registry.plugins.decide(
            replace(
                self.egress_request(question.workload, question.source, question.destination),
                destination=PLAIN_PEER,
            )
        )
        if not verdict.allow:
            return self._denied(question.token, verdict.rule)
        self._note_audit(question, verdict)
        return messages.FlowOverlay(
            question.token, "not-brokered", NOT_BROKERED_LIFETIME_MS, verdict.text, verdict.shaping
        )

    def _unknown(self, question: Question, reason: str) -> FlowAnswer:
        """Nobody could say: the overlay, unless policy isolates the source."""
        if question.workload.state.isolated_egress:
            return messages.FlowDenied(
                question.token, self.deny_errno, UNKNOWN_LIFETIME_MS, f"verdict unknown: {reason}"
            )
        return messages.FlowOverlay(
            question.token,
            reason,
            UNKNOWN_LIFETIME_MS,
            question.verdict.text,
            question.verdict.shaping,
        )

    def _denied(self, token: int, rule: str) -> FlowAnswer:
        self.counters["denied"] += 1
        return messages.FlowDenied(token, self.deny_errno, DENIED_LIFETIME_MS, rule)
