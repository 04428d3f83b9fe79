"""What control does with what other slimds say: implements peers.link.PeerHandler."""

from __future__ import annotations

import logging
from collections import Counter
from typing import TYPE_CHECKING

from slim.broker.endpoints import from_packed16, packed16
from slim.broker.local import messages
from slim.broker.peers import messages as peer_messages

if TYPE_CHECKING:
    from slim.broker.admission_keys import AdmissionKeys
    from slim.broker.control_links import TrapsServer
    from slim.broker.endpoints import Address
    from slim.broker.inbound import Inbound
    from slim.broker.peers.channel import PeerLinks
    from slim.broker.peers.link import PeerInfo
    from slim.broker.resolver import Resolver

log = logging.getLogger(__name__)


class Peering:
    """Borrows everything it is made with; links and resolver are set before the first message."""

    _links: PeerLinks
    _resolver: Resolver

    def __init__(
        self,
        host: str,
        addresses: tuple[Address, ...],
        traps: TrapsServer,
        keys: AdmissionKeys,
        inbound: Inbound,
    ) -> None:
        self._host = host
        self._addresses = addresses
        self._traps = traps
        self._keys = keys
        self._inbound = inbound
        self.counters: Counter[str] = Counter()

    def use(self, links: PeerLinks, resolver: Resolver) -> None:
        self._links = links
        self._resolver = resolver

    def hello(self) -> peer_messages.Hello:
        return peer_messages.Hello(
            peer_messages.PROTOCOL,
            self._host,
            [packed16(address) for address in self._addresses],
            ["preamble"],
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

    def connected(self, peer: PeerInfo) -> None:
        host = peer.host

        def deliver(key: peer_messages.Key) -> bool:
            return self._links.send(host, key)

        self._keys.start(host, list(peer.addresses), deliver)

    def disconnected(self, peer: PeerInfo) -> None:
        self._keys.stop(peer.host)

    def take_own_key(self, key: peer_messages.Key) -> bool:
        return self._traps.send(
            messages.SealingKey(self._host, key.key_id, key.key, key.seal_ms, key.accept_ms)
        )
