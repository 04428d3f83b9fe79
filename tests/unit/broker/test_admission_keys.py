"""Admission keys: installed here before they are delivered, renewed, and awaited."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from slim.broker import admission_keys
from slim.broker.admission.preamble import KEY_BYTES
from slim.broker.admission_keys import AdmissionKeys
from slim.broker.local import messages
from support.brokering import FakeTraps

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    import pytest

    from slim.broker.peers import messages as peer_messages

ADDRESSES = [b"\x01" * 16]


class Peer:
    """Where keys are delivered; says what traps knew by then."""

    def __init__(self, traps: FakeTraps) -> None:
        self.keys: list[peer_messages.Key] = []
        self.installed: list[int] = []
        self.is_up = True
        self.has_three = asyncio.Event()
        self._traps = traps

    def deliver(self, key: peer_messages.Key) -> bool:
        self.keys.append(key)
        self.installed.append(len(self._traps.requests))
        if len(self.keys) == 3:
            self.has_three.set()
        return self.is_up


def run(test: Callable[[AdmissionKeys, FakeTraps, Peer], Coroutine[None, None, None]]) -> None:
    async def main() -> None:
        traps = FakeTraps()
        keys = AdmissionKeys(traps, lifetime_s=300)
        try:
            async with asyncio.timeout(10):
                await test(keys, traps, Peer(traps))
        finally:
            keys.close()
            await asyncio.sleep(0)

    asyncio.run(main())


def test_a_key_is_installed_before_the_peer_has_it() -> None:
    async def test(keys: AdmissionKeys, traps: FakeTraps, peer: Peer) -> None:
        keys.start("b", ADDRESSES, peer.deliver)
        await keys.ensure("b")
        (installed,), (delivered,) = traps.requests, peer.keys
        assert peer.installed == [1]
        assert isinstance(installed, messages.OpeningKey)
        assert (installed.peer, installed.addresses) == ("b", ADDRESSES)
        assert (installed.key_id, installed.key) == (delivered.key_id, delivered.key)
        assert installed.accept_ms == delivered.accept_ms == 360_000
        assert delivered.seal_ms == 60_000
        assert len(delivered.key) == KEY_BYTES

    run(test)


def test_keys_are_renewed_and_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission_keys, "RENEW_S", 0.0)

    async def test(keys: AdmissionKeys, traps: FakeTraps, peer: Peer) -> None:
        keys.start("b", ADDRESSES, peer.deliver)
        await peer.has_three.wait()
        assert len({key.key for key in peer.keys}) == len(peer.keys)
        assert len({key.key_id for key in peer.keys}) == len(peer.keys)

    run(test)


def test_a_key_is_renewed_before_its_sealing_ends() -> None:
    assert admission_keys.RENEW_S < admission_keys.SEAL_S


def test_an_answer_waits_for_the_first_key() -> None:
    async def test(keys: AdmissionKeys, traps: FakeTraps, peer: Peer) -> None:
        traps.is_away = True
        keys.start("b", ADDRESSES, peer.deliver)
        waiting = asyncio.create_task(keys.ensure("b"))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        assert peer.keys == []
        traps.is_away = False
        await waiting
        assert len(peer.keys) == 1

    run(test)


def test_a_key_that_is_not_delivered_holds_nobody_up() -> None:
    async def test(keys: AdmissionKeys, traps: FakeTraps, peer: Peer) -> None:
        peer.is_up = False
        keys.start("b", ADDRESSES, peer.deliver)
        await keys.ensure("b")
        await keys.ensure("a peer without a channel")

    run(test)


def test_stopping_ends_renewal_and_starting_again_begins_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(admission_keys, "RENEW_S", 0.0)

    async def test(keys: AdmissionKeys, traps: FakeTraps, peer: Peer) -> None:
        keys.start("b", ADDRESSES, peer.deliver)
        await keys.ensure("b")
        keys.stop("b")
        keys.stop("b")
        count = len(peer.keys)
        await asyncio.sleep(0.02)
        assert len(peer.keys) == count
        keys.start("b", ADDRESSES, peer.deliver)
        keys.start("b", ADDRESSES, peer.deliver)
        await keys.ensure("b")
        assert len(peer.keys) > count

    run(test)
