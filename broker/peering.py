"""What control does with what other slimds say: implements peers.link.PeerHandler."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from typing import TYPE_CHECKING

from slim.broker import events
from slim.broker.decisions import Identity
from slim.broker.endpoints import contains_any, from_packed16, packed16
from slim.broker.local import messages
from slim.broker.peers import messages as peer_messages

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from slim.broker.admission_keys import AdmissionKeys
    from slim.broker.control_links import TrapsServer
    from slim.broker.endpoints import Address, Endpoint
    from slim.broker.inbound import Inbound
    from slim.broker.peers.channel import PeerLinks
    from slim.broker.peers.link import PeerInfo
    from slim.broker.registry import Registry, Workload
    from slim.broker.resolver import Resolver
    from slim.broker.revocation import Revocation
    from slim.broker.sources import Sources

log = logging.getLogger(__name__)


class Peering:
    """Borrows everything it is made with; `use` is called before the first message."""

    _links: PeerLinks
    _resolver: Resolver
    _revocation: Revocation

    def __init__(
        self,
        host: str,
        addresses: tuple[Address, ...],
        traps: TrapsServer,
        keys: AdmissionKeys,
        inbound: Inbound,
        registry: Registry,
        sources: Sources,
    ) -> None:
        self._host = host
        self._addresses = addresses
        self._traps = traps
        self._keys = keys
        self._inbound = inbound
        self._registry = registry
        self._sources = sources
        self._told: set[str] = set()
        """Hosts that know of the last change of policy."""
        self._relabelled: dict[bytes, peer_messages.Relabelled] = {}
        self.counters: Counter[str] = Counter()

    def use(self, links: PeerLinks, resolver: Resolver, revocation: Revocation) -> None:
        self._links = links
        self._resolver = resolver
        self._revocation = revocation

    def hello(self) -> peer_messages.Hello:
        return peer_messages.Hello(
            peer_messages.PROTOCOL,
            self._host,
            [packed16(address) for address in self._addresses],
            ["preamble", peer_messages.FEATURE_REVOKE],
        )

    async def resolve(
        self, peer: PeerInfo, message: peer_messages.Resolve
    ) -> peer_messages.ResolveAnswer:
        self.counters["resolves_answered"] += 1
        await self._keys.ensure(peer.host)
        return await self._inbound.answer(peer.host, message)

    def key(self, peer: PeerInfo, message: peer_messages.Key) -> None:
        self._traps.send(
            messages.SealingKey(
                peer.host, message.key_id, message.key, message.seal_ms, message.accept_ms
            )
        )

    def invalidate(self, peer: PeerInfo, message: peer_messages.Invalidate) -> None:
        address = from_packed16(message.destination)
        if not any(address in network for network in peer.networks):
            log.warning("peer %s invalidates %s, which is not its own", peer.host, address)
            return
        self._resolver.forget(address)
        self._traps.send(messages.DropFlows(message.destination, message.port))

    def policy_changed(self, peer: PeerInfo) -> None:
        """What its slimd answered is worth nothing now, answers on their way to us included."""
        self.counters["policy_changes_of_peers"] += 1
        self._registry.epoch += 1
        packed = [(packed16(each.network_address), each.prefixlen) for each in peer.networks]
        self._traps.send(messages.DropFlowsInto(packed))
        self._revocation.peer_changed(peer.networks)

    def relabelled(self, peer: PeerInfo, message: peer_messages.Relabelled) -> None:
        identity = Identity(message.workload, message.namespace, message.labels)
        if self._sources.get(peer.host, message.source) is None:
            # Nothing goes from it to us, or from us to it.
            return
        if self._sources.remember(peer.host, message.source, identity):
            self._registry.epoch += 1
            self._revocation.judge_again()

    def cut(self, peer: PeerInfo, message: peer_messages.Cut) -> None:
        self._revocation.peer_cut(message.ends, peer.networks)

    def pace(self, peer: PeerInfo, message: peer_messages.Pace) -> None:
        self._revocation.enforcing.peer_wants(message.rate, message.ends, peer.networks)

    # --- what peers are to know (revocation.News) ---------------------------------------------

    def tell_policy_changed(self) -> None:
        self._told.clear()
        for peer in self._links.connected():
            self._tell_epoch(peer)

    def tell_relabelled(self, workload: Workload) -> None:
        identity = workload.identity
        for source in workload.state.addresses:
            # Kept for those who connect later: what lives may be older than their channel.
            self._relabelled[source] = peer_messages.Relabelled(
                identity.workload, identity.namespace, dict(identity.labels), source
            )
        for peer in self._links.connected():
            self._tell_labels(peer)

    def _tell_labels(self, peer: PeerInfo) -> None:
        if peer_messages.FEATURE_REVOKE in peer.features:
            for message in self._relabelled.values():
                self._links.send(peer.host, message)

    def tell_cut(self, ends: Iterable[tuple[Address, bytes]]) -> None:
        """Each to the hosts whose certificate names its address."""
        self._tell_ends(ends, peer_messages.Cut)

    def tell_pace(self, rate: int | None, ends: Iterable[tuple[Address, bytes]]) -> None:
        """As tell_cut."""
        self._tell_ends(ends, lambda part: peer_messages.Pace(rate, part))

    def _tell_ends(
        self,
        ends: Iterable[tuple[Address, bytes]],
        make: Callable[[list[bytes]], peer_messages.AnyPeerMessage],
    ) -> None:
        by_address: dict[Address, list[bytes]] = defaultdict(list)
        for address, end in ends:
            by_address[address].append(end)
        for peer in self._links.connected():
            if peer_messages.FEATURE_REVOKE not in peer.features:
                continue
            its = [
                end
                for address, group in by_address.items()
                if contains_any(peer.networks, address)
                for end in group
            ]
            for start in range(0, len(its), peer_messages.MAX_ENDS):
                part = its[start : start + peer_messages.MAX_ENDS]
                self._links.send(peer.host, make(part))

    def _tell_epoch(self, peer: PeerInfo) -> None:
        if peer_messages.FEATURE_REVOKE in peer.features and peer.host not in self._told:
            self._told.add(peer.host)
            self._links.send(peer.host, peer_messages.PolicyChanged())

    # --- channels come and go -----------------------------------------------------------------

    def connected(self, peer: PeerInfo) -> None:
        host = peer.host
        self._registry.publish(events.PeerConnected(peer_host=host))
        # Policy may have changed while there was no channel, or no slimd.
        self._tell_epoch(peer)
        self._tell_labels(peer)

        def deliver(key: peer_messages.Key) -> bool:
            return self._links.send(host, key)

        self._keys.start(host, list(peer.addresses), deliver)

    def disconnected(self, peer: PeerInfo, why: str) -> None:
        self._keys.stop(peer.host)
        self._registry.publish(events.PeerDisconnected(peer_host=peer.host, reason=why))

    def failed(self, endpoint: Endpoint, why: str) -> None:
        self._registry.publish(events.PeerFailed(endpoint=str(endpoint), reason=why))

    def take_own_key(self, key: peer_messages.Key) -> bool:
        return self._traps.send(
            messages.SealingKey(self._host, key.key_id, key.key, key.seal_ms, key.accept_ms)
        )
