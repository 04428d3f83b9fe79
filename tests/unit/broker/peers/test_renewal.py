"""Certificates that change while slimd runs: whose channels end, and what new ones show."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from slim.broker.peers import messages
from support.peering import LIMIT_S, Authority, Side, until

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from pathlib import Path

    from slim.broker.peers.pki import HostCredentials

WIDER = ("10.77.1.0/24", "10.78.0.0/16")


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


def run(scenario: Coroutine[None, None, None]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(3 * LIMIT_S):
            await scenario

    asyncio.run(limited())


def use(side: Side, credentials: HostCredentials) -> None:
    side.links.use_credentials(
        credentials, credentials.client_context(), credentials.server_context()
    )


async def networks_seen(owner: Side, asker: Side) -> int:
    """What the owner reads in the asker's certificate, on the channel that serves now."""
    await asker.ask(owner)
    return len(owner.recorder.asked[-1][0].networks)


def test_open_channels_stay_and_new_ones_show_the_new_certificate(authority: Authority) -> None:
    async def scenario() -> None:
        async with (
            Side(authority.credentials("a")) as a,
            Side(authority.credentials("b")) as b,
            Side(authority.credentials("c")) as c,
        ):
            assert await networks_seen(b, a) == 1
            use(a, authority.credentials("a", *WIDER))
            assert await networks_seen(b, a) == 1
            assert await networks_seen(c, a) == len(WIDER)
            # The other way round: who is dialled shows it, too.
            assert ("disconnected", "b") not in a.recorder.events

    run(scenario())


def test_another_authority_ends_open_channels_and_refuses_those_of_the_old_one(
    authority: Authority, tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with Side(authority.credentials("a")) as a, Side(authority.credentials("b")) as b:
            await a.ask(b)
            use(a, Authority(tmp_path).credentials("a"))
            await until(lambda: ("disconnected", "b") in a.recorder.events, "the channel ended")
            with pytest.raises(Exception, match=r"certificate|handshake|TLS|channel"):
                await a.ask(b)

    run(scenario())


def test_news_about_policy_go_to_the_handler(authority: Authority) -> None:
    async def scenario() -> None:
        async with Side(authority.credentials("a")) as a, Side(authority.credentials("b")) as b:
            await a.ask(b)
            end = messages.pack_end((bytes(16), 80), (bytes(16), 81))
            assert a.links.send("b", messages.PolicyChanged())
            assert a.links.send("b", messages.Cut([end]))
            await until(lambda: b.recorder.news, "news")
            assert ("policy changed", "a") in b.recorder.events
            assert b.recorder.news == [messages.Cut([end])]

    run(scenario())


def test_labels_of_a_workload_that_the_certificate_does_not_name_end_the_channel(
    authority: Authority,
) -> None:
    async def scenario() -> None:
        async with Side(authority.credentials("a")) as a, Side(authority.credentials("b")) as b:
            await a.ask(b)
            a.links.send("b", messages.Relabelled("web", "shop", {}, bytes(16)))
            await until(lambda: ("disconnected", "a") in b.recorder.events, "the channel ended")
            assert b.recorder.news == []

    run(scenario())
