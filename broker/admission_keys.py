"""Admission keys, made here for every peer that may connect to this host's listeners.

A key seals for 60 s and is accepted for the flow lifetime and 60 s more, by our clock; a new one
is pushed before the old one ends. With the channel down the peer goes on with its last key until
we accept it no more, and no flow outlives its key.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from typing import TYPE_CHECKING

from slim.broker.admission.keyring import new_key_id
from slim.broker.admission.preamble import KEY_BYTES
from slim.broker.errors import ControlError
from slim.broker.local import messages
from slim.broker.peers import messages as peer_messages

if TYPE_CHECKING:
    from collections.abc import Callable

    from slim.broker.inbound import TrapsPort

log = logging.getLogger(__name__)

SEAL_S = 60
RENEW_S = 45.0
ACCEPT_MARGIN_S = 60


class AdmissionKeys:
    """Makes, installs and renews keys; one task per peer."""

    def __init__(self, traps: TrapsPort, *, lifetime_s: int) -> None:
        self._traps = traps
        self.use_lifetime(lifetime_s)
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._ready: dict[str, asyncio.Event] = {}

    def use_lifetime(self, lifetime_s: int) -> None:
        """Flows live so long; keys that were given out keep their time."""
        self._accept_ms = (lifetime_s + ACCEPT_MARGIN_S) * 1000

    def start(
        self,
        peer: str,
        addresses: list[bytes],
        deliver: Callable[[peer_messages.Key], bool],
    ) -> None:
        """Keep the peer supplied with keys until `stop`."""
        self.stop(peer)
        self._ready[peer] = asyncio.Event()
        self._tasks[peer] = asyncio.create_task(self._supply(peer, addresses, deliver))

    def stop(self, peer: str) -> None:
        """No new keys; the ones given out live on for their time."""
        task = self._tasks.pop(peer, None)
        if task is not None:
            task.cancel()
        self._ready.pop(peer, None)

    async def ensure(self, peer: str) -> None:
        """Wait until the peer was given a key: an answer must not overtake it."""
        ready = self._ready.get(peer)
        if ready is not None:
            await ready.wait()

    def close(self) -> None:
        for peer in [*self._tasks]:
            self.stop(peer)

    async def _supply(
        self,
        peer: str,
        addresses: list[bytes],
        deliver: Callable[[peer_messages.Key], bool],
    ) -> None:
        while True:
            key = peer_messages.Key(
                new_key_id(), secrets.token_bytes(KEY_BYTES), SEAL_S * 1000, self._accept_ms
            )
            try:
                await self._install(peer, addresses, key)
            except ControlError as error:
                log.warning("no admission key for %s yet: %s", peer, error)
                await asyncio.sleep(1.0)
                continue
            if not deliver(key):
                log.info("admission key for %s not delivered: the channel is down", peer)
            ready = self._ready.get(peer)
            if ready is not None:
                ready.set()
            await asyncio.sleep(RENEW_S)

    async def _install(self, peer: str, addresses: list[bytes], key: peer_messages.Key) -> None:
        await self._traps.request(
            lambda token: messages.OpeningKey(
                token, peer, key.key_id, key.key, key.accept_ms, addresses
            )
        )
