"""Channels between slimds in one process, over loopback and with real certificates."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import ssl
from typing import TYPE_CHECKING

import pytest

from slim.broker.endpoints import Endpoint, packed16
from slim.broker.errors import ControlError
from slim.broker.peers import channel, frames, identity, link, messages, pki, streams
from slim.broker.peers.channel import Dial
from support.peering import (
    LIMIT_S,
    LOOPBACK,
    Authority,
    Side,
    answer_fast,
    free_port,
    question,
    raw_client,
    raw_server,
    until,
    workload_of,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine
    from pathlib import Path

    from slim.broker.peers.pki import HostCredentials


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def a(authority: Authority) -> HostCredentials:
    return authority.credentials("a")


@pytest.fixture(scope="module")
def b(authority: Authority) -> HostCredentials:
    return authority.credentials("b")


def run(scenario: Coroutine[None, None, None]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(3 * LIMIT_S):
            await scenario

    asyncio.run(limited())


# --- asking -----------------------------------------------------------------------------------


def test_a_question_is_answered_with_the_asker_known_by_its_certificate(
    a: HostCredentials, b: HostCredentials
) -> None:
    async def scenario() -> None:
        async with Side(a) as asker, Side(b) as owner:
            answer = await asker.ask(owner, port=81)
            assert isinstance(answer, messages.ResolvedFast)
            assert (answer.host_port, answer.flow, answer.rule) == (20081, 7, "rules:all")
            ((peer, asked),) = owner.recorder.asked
            assert (peer.host, peer.networks) == ("a", a.identity.networks)
            assert (peer.addresses, peer.features) == ((packed16(LOOPBACK),), ("preamble",))
            assert (asked.workload, asked.namespace, asked.labels, asked.port) == (
                "web",
                "shop",
                {"app": "web"},
                81,
            )

    run(scenario())


def test_both_ends_ask_over_the_one_channel(a: HostCredentials, b: HostCredentials) -> None:
    async def scenario() -> None:
        async with Side(a) as one, Side(b) as other:
            await one.ask(other)
            await until(lambda: other.is_connected, "b has the channel")
            await other.ask(one)
            assert [status.host for status in one.links.status()] == ["b"]
            assert [status.host for status in other.links.status()] == ["a"]
            # Nobody dialled a: b used what was there.
            assert other.links._dials == {}
            assert one.recorder.events == [("connected", "b")]
            assert other.recorder.events == [("connected", "a")]

    run(scenario())


def test_many_questions_at_once_get_each_its_own_answer(
    a: HostCredentials, b: HostCredentials
) -> None:
    async def scenario() -> None:
        async with Side(a) as asker, Side(b) as owner:
            answers = await asyncio.gather(*(asker.ask(owner, port=port) for port in range(500)))
            for port, answer in enumerate(answers):
                assert isinstance(answer, messages.ResolvedFast)
                assert answer.host_port == 20000 + port
            assert asker.links.counters["questions_asked"] == 500
            assert owner.links.counters["questions_received"] == 500
            assert owner.recorder.events == [("connected", "a")]

    run(scenario())


def test_a_name_is_not_needed_where_only_the_endpoint_is_known(
    a: HostCredentials, b: HostCredentials
) -> None:
    async def scenario() -> None:
        async with Side(a) as asker, Side(b) as owner:
            for _ in range(2):
                host, _ = await asker.links.ask(None, owner.endpoint, question("a", "b"))
                assert host == "b"
            assert len(owner.recorder.events) == 1

    run(scenario())


def test_another_host_than_expected_at_the_endpoint_is_not_asked(
    a: HostCredentials, b: HostCredentials
) -> None:
    async def scenario() -> None:
        async with Side(a) as asker, Side(b) as other:
            with pytest.raises(ControlError, match="is b, not c"):
                await asker.links.ask("c", other.endpoint, question("a", "c"))
            assert other.recorder.asked == []

    run(scenario())


def test_this_host_is_not_dialled(a: HostCredentials) -> None:
    async def scenario() -> None:
        async with Side(a) as side:
            assert isinstance(await side.ask(side), messages.ResolvedUnknown)
            with pytest.raises(ControlError, match="the other end is 'a' too"):
                await side.links.ask(None, side.endpoint, question("a", "a"))
            assert side.recorder.events == []

    run(scenario())


def test_a_caller_who_gives_up_leaves_the_dialling_going(
    a: HostCredentials, b: HostCredentials
) -> None:
    async def scenario() -> None:
        async with Side(a) as asker, Side(b) as owner:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0):
                    await asker.ask(owner)
            await until(lambda: asker.is_connected, "the dialling goes on")
            assert owner.recorder.asked == []

    run(scenario())


def test_questions_that_were_given_up_do_not_use_up_the_channel(
    a: HostCredentials, b: HostCredentials, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "MAX_QUESTIONS", 4)

    async def scenario() -> None:
        async with Side(a) as asker, Side(b) as owner:
            owner.recorder.gate = asyncio.Event()
            for _ in range(2):
                asking = [asyncio.create_task(asker.ask(owner)) for _ in range(4)]
                await until(
                    lambda: (
                        asker.links.counters["questions_asked"] % 4 == 0
                        and owner.links.counters["questions_received"]
                        == asker.links.counters["questions_asked"]
                        > 0
                    ),
                    "four are asked",
                )
                await asyncio.sleep(0)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.05):
                        # The second four come back at once: b has four in hand already.
                        await asyncio.gather(*asking)
                for task in asking:
                    task.cancel()
                await asyncio.gather(*asking, return_exceptions=True)
            assert len(owner.recorder.asked) == 4
            assert owner.links.counters["questions_refused"] == 4
            owner.recorder.gate.set()
            await until(lambda: not owner.links._links["a"]._answering, "all four are answered")
            assert isinstance(await asker.ask(owner), messages.ResolvedFast)
            assert asker.recorder.events == [("connected", "b")]

    run(scenario())


def test_more_questions_than_may_be_open_are_not_asked(
    a: HostCredentials, b: HostCredentials, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "MAX_QUESTIONS", 4)

    async def scenario() -> None:
        async with Side(a) as asker, Side(b) as owner:
            owner.recorder.gate = asyncio.Event()
            asking = [asyncio.create_task(asker.ask(owner)) for _ in range(4)]
            await until(lambda: len(owner.recorder.asked) == 4, "four are asked")
            with pytest.raises(ControlError, match="4 questions to b are open"):
                await asker.ask(owner)
            owner.recorder.gate.set()
            assert all(
                isinstance(answer, messages.ResolvedFast)
                for answer in await asyncio.gather(*asking)
            )

    run(scenario())


def test_an_answer_that_does_not_fit_is_made_to_fit(a: HostCredentials, b: HostCredentials) -> None:
    def answer(asked: messages.Resolve) -> messages.ResolveAnswer:
        return messages.ResolvedDenied(asked.token, 1000, "rules:\n" + "x" * 1000)

    async def scenario() -> None:
        async with Side(a) as asker, Side(b, answer) as owner:
            answered = await asker.ask(owner)
            assert isinstance(answered, messages.ResolvedDenied)
            assert answered.rule.startswith("rules:?x")

    run(scenario())


@pytest.mark.parametrize("how", ["raises", "unfit"])
def test_a_question_that_fails_at_the_peer_is_answered_with_unknown(
    a: HostCredentials, b: HostCredentials, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    def answer(asked: messages.Resolve) -> messages.ResolveAnswer:
        if how == "raises":
            raise ControlError("traps is away")
        return messages.ResolvedFast(asked.token, b"", 1, 1, 1, False, "")

    async def scenario() -> None:
        async with Side(a) as asker, Side(b, answer) as owner:
            assert isinstance(await asker.ask(owner), messages.ResolvedUnknown)

    run(scenario())
    assert "a question of a has no answer" in caplog.text


def test_a_question_that_the_peer_would_refuse_is_not_sent(
    a: HostCredentials, b: HostCredentials
) -> None:
    async def scenario() -> None:
        async with Side(a) as asker, Side(b) as owner:
            with pytest.raises(ControlError, match="labels is out of bounds"):
                await asker.ask(owner, labels={"app": "x" * 1000})
            assert isinstance(await asker.ask(owner), messages.ResolvedFast)

    run(scenario())


# --- what a certificate does not name ---------------------------------------------------------


def test_a_peer_is_not_asked_about_what_its_certificate_does_not_name(
    a: HostCredentials, b: HostCredentials, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with Side(a) as asker, Side(b) as owner:
            for _ in range(3):
                answer = await asker.ask(owner, destination=packed16(workload_of("c")))
                assert isinstance(answer, messages.ResolvedUnknown)
            assert owner.recorder.asked == []
            assert asker.links.counters["answers_not_believed"] == 3

    run(scenario())
    assert caplog.text.count("its certificate does not name 10.77.3.5") == 1


def test_a_host_address_that_was_not_announced_is_not_believed(
    a: HostCredentials, b: HostCredentials, caplog: pytest.LogCaptureFixture
) -> None:
    def answer(asked: messages.Resolve) -> messages.ResolveAnswer:
        elsewhere = packed16(workload_of("c"))
        return messages.ResolvedFast(asked.token, elsewhere, 22, 7, 1000, False, "")

    async def scenario() -> None:
        async with Side(a) as asker, Side(b, answer) as owner:
            assert isinstance(await asker.ask(owner), messages.ResolvedUnknown)

    run(scenario())
    assert "did not announce the address 10.77.3.5" in caplog.text


def test_a_question_for_a_source_that_the_certificate_does_not_name_ends_the_channel(
    a: HostCredentials, b: HostCredentials, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with Side(a) as asker, Side(b) as owner:
            with pytest.raises(ControlError):
                await asker.ask(owner, source=packed16(workload_of("c")))
            await until(lambda: not owner.is_connected, "b dropped the channel")
            assert owner.recorder.asked == []
            assert owner.links.counters["protocol_violations"] == 1
            assert owner.recorder.events == [("connected", "a"), ("disconnected", "a")]

    run(scenario())
    assert "channel to a dropped: question from 10.77.3.5, which the certificate" in caplog.text


# --- news -------------------------------------------------------------------------------------


def test_news_goes_over_the_channel_in_order_and_before_later_answers(
    a: HostCredentials, b: HostCredentials
) -> None:
    async def scenario() -> None:
        async with Side(a) as asker, Side(b) as owner:
            await asker.ask(owner)
            key = messages.Key(5, bytes(32), 60_000, 360_000)
            assert owner.links.send("a", key)
            assert owner.links.send("a", messages.Invalidate(packed16(workload_of("b")), 80))
            await asker.ask(owner)
            assert asker.recorder.keys == [key]
            assert [gone.port for gone in asker.recorder.invalidated] == [80]
            assert not owner.links.send("c", key)

    run(scenario())


def test_a_peer_that_does_not_read_is_dropped_and_blocks_nobody(
    a: HostCredentials, b: HostCredentials, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "MAX_OUTPUT", 64 * 1024)
    news = messages.Invalidate(packed16(workload_of("b")), 80)

    async def scenario() -> None:
        async with Side(b) as side, raw_client(side.endpoint, a.client_context()) as peer:
            peer.send(messages.Hello(2, "a", [packed16(LOOPBACK)], []))
            await until(lambda: side.is_connected, "b has the channel")
            peer.writer.transport.pause_reading()  # type: ignore[attr-defined]
            for sent in range(2_000_000):
                if not side.links.send("a", news):
                    break
                if sent % 1000 == 0:
                    await asyncio.sleep(0)
            assert sent < 1_000_000
            await until(lambda: not side.is_connected, "b dropped the channel")
            assert side.recorder.events[-1] == ("disconnected", "a")

    run(scenario())


# --- refusals ---------------------------------------------------------------------------------


async def _failure(asker: Side, owner: Endpoint) -> str:
    with pytest.raises(ControlError) as caught:
        await asker.links.ask(None, owner, question("a", "b"))
    (status,) = asker.links.status()
    assert status.state == "failed"
    assert status.error
    assert asker.recorder.events == []
    return str(caught.value)


def test_a_host_of_another_authority_is_refused_by_both_ends(
    a: HostCredentials,
    tmp_path_factory: pytest.TempPathFactory,
    caplog: pytest.LogCaptureFixture,
) -> None:
    stranger = Authority(tmp_path_factory.mktemp("other")).credentials("b")

    async def scenario() -> None:
        async with Side(a) as side, Side(stranger) as other:
            assert "the peer's certificate" in await _failure(side, other.endpoint)
            assert "the peer's certificate" in await _failure(other, side.endpoint)
            await until(lambda: side.links.counters["inbound_failed"] == 1, "a refused")
            await until(lambda: other.links.counters["inbound_failed"] == 1, "b refused")

    run(scenario())
    assert caplog.text.count("a channel from 127.0.0.1 refused: refused by the peer") == 2


def test_a_client_whose_certificate_is_of_another_authority_is_refused(
    a: HostCredentials,
    tmp_path_factory: pytest.TempPathFactory,
    caplog: pytest.LogCaptureFixture,
) -> None:
    # b trusts both authorities: so it is a that refuses, when b's handshake is already over.
    other = Authority(tmp_path_factory.mktemp("other"))
    stranger = other.credentials("b")
    context = stranger.client_context()
    context.load_verify_locations(cafile=a_authority(a))

    async def scenario() -> None:
        async with Side(a) as side, raw_client(side.endpoint, context) as peer:
            assert await peer.ends()
            await until(lambda: side.links.counters["inbound_failed"] == 1, "a refused")
            assert side.recorder.events == []

    run(scenario())
    assert "refused: TLS: the peer's certificate:" in caplog.text


def a_authority(credentials: HostCredentials) -> str:
    return str(credentials.certificate_file.parent.parent / "authority.crt")


@pytest.fixture
def expired(
    authority: Authority, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> tuple[HostCredentials, HostCredentials]:
    """Hosts a and b of an authority that is valid; b's certificate ended ten days ago."""
    past = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=40)
    with monkeypatch.context() as patched:
        patched.setattr(pki, "now", lambda: past)
        older = Authority(tmp_path)
        ended = older.credentials("b")
    return older.credentials("a"), ended


def test_an_expired_certificate_is_refused_by_whoever_sees_it(
    expired: tuple[HostCredentials, HostCredentials], caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with Side(expired[0]) as side, Side(expired[1]) as other:
            assert "certificate has expired" in await _failure(side, other.endpoint)
            await _failure(other, side.endpoint)
            await until(lambda: side.links.counters["inbound_failed"] == 1, "a refused")

    run(scenario())
    assert "from 127.0.0.1 refused: TLS: the peer's certificate: certificate has ex" in caplog.text


def test_a_client_without_a_certificate_is_refused(a: HostCredentials) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE

    async def scenario() -> None:
        async with Side(a) as side, raw_client(side.endpoint, context) as peer:
            assert await peer.ends()
            await until(lambda: side.links.counters["inbound_failed"] == 1, "a refused")
            assert side.recorder.events == []

    run(scenario())


def test_an_older_tls_is_refused(
    a: HostCredentials, b: HostCredentials, caplog: pytest.LogCaptureFixture
) -> None:
    context = b.client_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.maximum_version = ssl.TLSVersion.TLSv1_2

    async def scenario() -> None:
        async with Side(a) as side:
            with pytest.raises(OSError):
                async with raw_client(side.endpoint, context):
                    pass
            await until(lambda: side.links.counters["inbound_failed"] == 1, "a refused")

    run(scenario())
    assert "a channel from 127.0.0.1 refused: TLS: unsupported protocol" in caplog.text


def test_another_protocol_inside_tls_is_refused(a: HostCredentials, b: HostCredentials) -> None:
    context = b.client_context()
    context.set_alpn_protocols(["http/1.1"])

    async def scenario() -> None:
        async with Side(a) as side:
            with contextlib.suppress(OSError):
                async with raw_client(side.endpoint, context) as peer:
                    peer.send(messages.Hello(2, "b", [packed16(LOOPBACK)], []))
                    assert await peer.ends()
            await until(lambda: side.links.counters["inbound_failed"] == 1, "a refused")
            assert side.recorder.events == []

    run(scenario())


HELLO = messages.Hello(2, "b", [packed16(LOOPBACK)], [])


@pytest.mark.parametrize(
    ("first", "complaint"),
    [
        (
            messages.Hello(2, "c", HELLO.addresses, []),
            "says it is 'c', its certificate 'b'",
        ),
        (messages.Hello(1, "b", HELLO.addresses, []), "peer speaks protocol 1, this slimd 2"),
        (messages.Hello(2, "b", [], []), "Hello with 0 addresses"),
        (
            messages.Hello(2, "b", HELLO.addresses * 17, []),
            "Hello with 17 addresses",
        ),
        (messages.Ping(1), "Ping instead of Hello"),
        (question("b", "a")(1), "Resolve instead of Hello"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else value[:20],
)
@pytest.mark.parametrize("who_dials", ["we", "they"])
def test_a_wrong_start_ends_the_channel_with_the_reason_in_the_log(
    a: HostCredentials,
    b: HostCredentials,
    caplog: pytest.LogCaptureFixture,
    first: messages.AnyPeerMessage,
    complaint: str,
    who_dials: str,
) -> None:
    async def scenario() -> None:
        async with Side(a) as side:
            if who_dials == "they":
                async with raw_client(side.endpoint, b.client_context()) as peer:
                    peer.send(first)
                    assert await peer.ends()
                assert side.links.counters["inbound_failed"] == 1
                assert side.recorder.events == []
                return
            endpoint = Endpoint(LOOPBACK, free_port())
            async with raw_server(endpoint, b.server_context()) as came:
                asking = asyncio.create_task(_failure(side, endpoint))
                peer = await came.get()
                peer.send(first)
                assert complaint in await asking
                assert await peer.ends()
            ((where, why),) = side.recorder.failures
            assert where == endpoint
            assert complaint in why

    run(scenario())
    assert who_dials == "we" or complaint in caplog.text


GARBAGE = [
    pytest.param(b"GET / HTTP/1.1\r\n\r\n", "frame of 1195725856 bytes", id="garbage"),
    pytest.param((1 << 20).to_bytes(4, "big"), "frame of 1048576 bytes", id="too large"),
    pytest.param(frames.encode(HELLO), "a second Hello", id="second Hello"),
    pytest.param(b"\0\0\0\1\xc1", "malformed message", id="no message"),
]


@pytest.mark.parametrize(("data", "complaint"), GARBAGE)
def test_garbage_on_an_open_channel_ends_it(
    a: HostCredentials,
    b: HostCredentials,
    caplog: pytest.LogCaptureFixture,
    data: bytes,
    complaint: str,
) -> None:
    async def scenario() -> None:
        async with Side(a) as side, raw_client(side.endpoint, b.client_context()) as peer:
            peer.send(HELLO)
            await until(lambda: side.is_connected, "the channel is up")
            peer.writer.write(data)
            assert await peer.ends()
            await until(lambda: not side.is_connected, "it is dropped")
            assert side.links.counters["protocol_violations"] == 1
            assert side.recorder.events == [("connected", "b"), ("disconnected", "b")]

    run(scenario())
    assert f"channel to b dropped: {complaint}" in caplog.text


def test_garbage_instead_of_tls_is_refused(a: HostCredentials) -> None:
    async def scenario() -> None:
        async with Side(a) as side, raw_client(side.endpoint, None) as peer:
            peer.writer.write(b"GET / HTTP/1.1\r\n\r\n")
            assert await peer.ends()
            await until(lambda: side.links.counters["inbound_failed"] == 1, "a refused")

    run(scenario())


@pytest.mark.parametrize("tls", [False, True])
def test_who_connects_and_says_nothing_is_dropped_in_time(
    a: HostCredentials, b: HostCredentials, monkeypatch: pytest.MonkeyPatch, tls: bool
) -> None:
    monkeypatch.setattr(channel, "HELLO_LIMIT_S", 0.2)

    async def scenario() -> None:
        context = b.client_context() if tls else None
        async with Side(a) as side, raw_client(side.endpoint, context) as peer:
            assert await peer.ends()
            await until(lambda: side.links.counters["inbound_failed"] == 1, "it was counted")
            assert side.links._strangers._at.total() == 0

    run(scenario())


def test_strangers_from_one_address_are_few(
    a: HostCredentials, b: HostCredentials, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "MAX_STRANGERS_PER_ADDRESS", 3)

    async def scenario() -> None:
        async with Side(a) as side, contextlib.AsyncExitStack() as stack:
            for _ in range(3):
                await stack.enter_async_context(raw_client(side.endpoint, None))
            await until(lambda: side.links._strangers._at.total() == 3, "three are in")
            async with raw_client(side.endpoint, None) as fourth:
                assert await fourth.ends()
            assert side.links.counters["inbound_refused"] == 1
            await stack.aclose()
            await until(lambda: side.links._strangers._at.total() == 0, "they are gone")
            async with Side(b) as good:
                assert isinstance(await good.ask(side), messages.ResolvedFast)
            assert side.links._strangers._at.total() == 0

    run(scenario())


def test_a_peer_at_an_address_that_it_does_not_announce_is_warned_of(
    a: HostCredentials, b: HostCredentials, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with Side(a) as asker, Side(b) as owner:
            asker.hello = messages.Hello(2, "a", [packed16(workload_of("a"))], [])
            await asker.ask(owner)

    run(scenario())
    assert "peer a is at 127.0.0.1, which is not among the addresses" in caplog.text


# --- ends and new starts ----------------------------------------------------------------------


def test_a_peer_that_is_down_is_dialled_again_with_growing_pauses(a: HostCredentials) -> None:
    endpoint = Endpoint(LOOPBACK, free_port())

    async def scenario() -> None:
        async with Side(a) as side:
            assert "Connection refused" in await _failure(side, endpoint)
            (status,) = side.links.status()
            assert (status.endpoint, status.error) == (str(endpoint), "Connection refused")
            assert 0 < status.retry_in_s <= channel.BACK_OFF_FIRST_S * 1.2
            # Until then it is not even tried.
            assert "next try in" in await _failure(side, endpoint)
            assert side.links.counters["dials_failed"] == 1
            await until(lambda: not side.links.status()[0].retry_in_s, "the pause is over")
            await _failure(side, endpoint)
            assert side.links.counters["dials_failed"] == 2
            assert side.links.status()[0].retry_in_s > channel.BACK_OFF_FIRST_S * 1.2

    run(scenario())


def test_pauses_double_up_to_a_limit_and_start_anew_after_a_channel_that_settled() -> None:
    dial = Dial()
    pauses = []
    for _ in range(10):
        dial.failed("Connection refused")
        pauses.append(dial.retry_at - dial.changed)
    for number, pause in enumerate(pauses):
        expected = min(0.2 * 2**number, 30.0)
        assert 0.8 * expected <= pause <= 1.2 * expected
    dial.ended("closed by the peer", young=False)
    assert dial.back_off_s == channel.BACK_OFF_FIRST_S


def test_a_peer_that_takes_channels_only_to_end_them_is_not_dialled_without_pause(
    a: HostCredentials, b: HostCredentials, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel, "REPLACEMENT_S", 0.01)
    endpoint = Endpoint(LOOPBACK, free_port())

    async def scenario() -> None:
        async with Side(a) as side, raw_server(endpoint, b.server_context()) as came:
            for _ in range(2):
                asking = asyncio.create_task(side.links.ask("b", endpoint, question("a", "b")))
                peer = await came.get()
                peer.send(HELLO)
                while not isinstance(await peer.receive(), messages.Resolve):
                    pass
                peer.writer.transport.abort()
                with pytest.raises(ControlError, match="the channel to b ended"):
                    await asking
            with pytest.raises(ControlError, match="closed by the peer; next try in"):
                await side.links.ask("b", endpoint, question("a", "b"))
            (status,) = side.links.status()
            assert (status.host, status.state, status.error) == (
                "b",
                "failed",
                "closed by the peer",
            )

    run(scenario())


def test_asking_works_again_after_the_peer_restarted(
    a: HostCredentials, b: HostCredentials
) -> None:
    async def scenario() -> None:
        async with Side(a) as asker:
            first = Side(b)
            async with first as owner:
                await asker.ask(owner)
            await until(lambda: not asker.is_connected, "the end is seen")
            with pytest.raises(ControlError):
                await asker.ask(first)
            second = Side(b)
            second.endpoint = first.endpoint
            async with second as owner:
                await until(lambda: not asker.links.status()[0].retry_in_s, "the pause is over")
                assert isinstance(await asker.ask(owner), messages.ResolvedFast)
            events = ["connected", "disconnected"] * 2
            await until(lambda: len(asker.recorder.events) == 4, "all events")
            assert asker.recorder.events == [(event, "b") for event in events]

    run(scenario())


def test_open_questions_fail_when_the_channel_ends(a: HostCredentials, b: HostCredentials) -> None:
    async def scenario() -> None:
        async with Side(a) as asker, Side(b) as owner:
            owner.recorder.gate = asyncio.Event()
            asking = asyncio.create_task(asker.ask(owner))
            await until(lambda: owner.recorder.asked, "the question is there")
            await owner.links.close()
            with pytest.raises(ControlError, match="the channel to b ended"):
                await asking

    run(scenario())


def test_nothing_is_dialled_once_the_links_are_closed(
    a: HostCredentials, b: HostCredentials
) -> None:
    async def scenario() -> None:
        async with Side(a) as asker, Side(b) as owner:
            await asker.links.close()
            with pytest.raises(ControlError, match="slimd stops"):
                await asker.ask(owner)
            assert owner.recorder.events == []

    run(scenario())


@pytest.mark.parametrize("round_", range(5))
def test_when_both_dial_at_once_one_channel_stays_and_every_question_is_answered(
    a: HostCredentials, b: HostCredentials, round_: int
) -> None:
    async def scenario() -> None:
        async with Side(a) as one, Side(b) as other:
            answers = await asyncio.gather(
                *(one.ask(other, port=port) for port in range(50)),
                *(other.ask(one, port=port) for port in range(50)),
            )
            assert all(isinstance(answer, messages.ResolvedFast) for answer in answers)
            await until(lambda: one.is_connected and other.is_connected, "both have a channel")
            await asyncio.sleep(0.05)
            assert isinstance(await one.ask(other), messages.ResolvedFast)
            assert isinstance(await other.ask(one), messages.ResolvedFast)
            # One channel has two ends: the one that host a dialled.
            assert one.links._links["b"].dialled
            assert not other.links._links["a"].dialled
            assert len(one.links._links) == len(other.links._links) == 1
            assert other.links.send("a", messages.Invalidate(packed16(workload_of("b")), 1))
            await until(lambda: one.recorder.invalidated, "news comes over it")

    run(scenario())


def test_a_question_on_a_young_channel_waits_for_the_one_that_replaces_it(
    a: HostCredentials, b: HostCredentials, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel, "REPLACEMENT_S", LIMIT_S)
    endpoint = Endpoint(LOOPBACK, free_port())

    async def scenario() -> None:
        async with Side(a) as side, raw_server(endpoint, b.server_context()) as came:
            asking = asyncio.create_task(side.links.ask("b", endpoint, question("a", "b")))
            old = await came.get()
            old.send(HELLO)
            while not isinstance(await old.receive(), messages.Resolve):
                pass
            old.writer.transport.abort()
            await until(lambda: not side.is_connected, "the first channel ended")
            async with raw_client(side.endpoint, b.client_context()) as new:
                new.send(HELLO)
                while not isinstance(asked := await new.receive(), messages.Resolve):
                    pass
                new.send(answer_fast(asked))
                assert isinstance((await asking)[1], messages.ResolvedFast)

    run(scenario())


def test_a_channel_too_many_is_ended_in_good_order(a: HostCredentials, b: HostCredentials) -> None:
    endpoint = Endpoint(LOOPBACK, free_port())

    async def scenario() -> None:
        async with Side(a) as side, raw_server(endpoint, b.server_context()) as came:
            asking = asyncio.create_task(side.links.ask("b", endpoint, question("a", "b")))
            (await came.get()).send(HELLO)
            await until(lambda: side.is_connected, "the channel that a dialled is up")
            async with raw_client(side.endpoint, b.client_context()) as second:
                second.send(HELLO)
                assert isinstance(await second.receive(), messages.Hello)
                # Not a reset, which could overtake the Hello.
                with pytest.raises(EOFError):
                    await second.receive()
            assert side.recorder.events == [("connected", "b")]
            asking.cancel()

    run(scenario())


def test_a_second_channel_replaces_one_that_stood_for_a_while(
    a: HostCredentials, b: HostCredentials, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The peer lost power: its old channel was never ended, and it dials again.
    monkeypatch.setattr(channel, "SETTLED_S", 0.0)

    async def scenario() -> None:
        async with Side(a) as side, raw_client(side.endpoint, b.client_context()) as old:
            old.send(HELLO)
            await until(lambda: side.is_connected, "the first channel is up")
            async with raw_client(side.endpoint, b.client_context()) as new:
                new.send(HELLO)
                assert await old.ends()
                await until(lambda: len(side.recorder.events) == 2, "the second is up")
                assert side.recorder.events == [("connected", "b")] * 2
                asking = asyncio.create_task(side.links.ask("b", side.endpoint, question("a", "b")))
                while not isinstance(asked := await new.receive(), messages.Resolve):
                    pass
                new.send(answer_fast(asked))
                assert isinstance((await asking)[1], messages.ResolvedFast)

    run(scenario())


# --- pings ------------------------------------------------------------------------------------


def test_the_round_trip_is_measured(a: HostCredentials, b: HostCredentials) -> None:
    async def scenario() -> None:
        async with Side(a) as asker, Side(b) as owner:
            await asker.ask(owner)
            await until(lambda: asker.links.status()[0].rtt_ms > 0, "a pong came")
            await until(lambda: owner.links.status()[0].rtt_ms > 0, "a pong came")
            (status,) = asker.links.status()
            assert (status.state, status.endpoint) == ("connected", str(owner.endpoint))
            assert status.rtt_ms < 5000

    run(scenario())


def test_a_peer_that_leaves_pings_unanswered_is_dropped(
    a: HostCredentials,
    b: HostCredentials,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(link, "PING_EVERY_S", 0.02)

    async def scenario() -> None:
        async with Side(a) as side, raw_client(side.endpoint, b.client_context()) as peer:
            peer.send(HELLO)
            received: list[messages.AnyPeerMessage] = []
            with contextlib.suppress(EOFError, OSError):
                while True:
                    received.append(await peer.receive())
                    # Of another time, so of no use.
                    peer.send(messages.Pong(1000))
            assert sum(isinstance(message, messages.Ping) for message in received) == 3
            await until(lambda: not side.is_connected, "it is dropped")

    run(scenario())
    assert "the channel to b is dropped: it left 3 pings unanswered" in caplog.text


def test_a_channel_ends_with_the_certificate_of_its_peer(
    a: HostCredentials,
    b: HostCredentials,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(link, "PING_EVERY_S", 0.02)

    async def scenario() -> None:
        async with Side(a) as asker, Side(b) as owner:
            await asker.ask(owner)
            monkeypatch.setattr(identity, "now", lambda: b.identity.not_after)
            await until(lambda: not asker.is_connected, "it is dropped")

    run(scenario())
    assert "is dropped: its certificate expired" in caplog.text


def test_a_certificate_that_ends_soon_is_warned_of_at_the_start(
    a: HostCredentials, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(channel, "EXPIRES_SOON", datetime.timedelta(days=31))

    async def scenario() -> None:
        async with Side(a):
            pass

    run(scenario())
    assert "the certificate of a expires on" in caplog.text


# --- what others see --------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def wiretap(target: Endpoint) -> AsyncIterator[tuple[Endpoint, list[bytes]]]:
    """An endpoint that passes everything on to another, and all that it passed on."""
    seen: list[bytes] = []
    tasks: list[asyncio.Task[None]] = []

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                seen.append(data)
                writer.write(data)
        writer.close()

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(str(target.address), target.port)
        tasks.append(asyncio.create_task(pass_on(reader, back)))
        tasks.append(asyncio.create_task(pass_on(there, writer)))

    endpoint = Endpoint(LOOPBACK, free_port())
    server = await asyncio.start_server(take, str(endpoint.address), endpoint.port)
    try:
        yield endpoint, seen
    finally:
        server.close()
        await asyncio.gather(*tasks)


def test_nothing_of_a_question_can_be_read_on_the_wire(
    a: HostCredentials, b: HostCredentials
) -> None:
    secret = "the-label-that-nobody-reads"

    async def scenario() -> None:
        async with Side(b) as owner, wiretap(owner.endpoint) as (endpoint, seen):
            async with Side(a) as asker:
                asked = question("a", "b", labels={"app": secret})
                _, answer = await asker.links.ask("b", endpoint, asked)
                assert isinstance(answer, messages.ResolvedFast)
                assert owner.recorder.asked[0][1].labels == {"app": secret}
            stream = b"".join(seen)
            assert len(stream) > 2000
            for word in (secret, "Resolve", "shop", "slim+network", "rules:all"):
                assert word.encode() not in stream, word
            # What can be read: that it is TLS, and which protocol it is for.
            assert b"slim/1" in stream

    run(scenario())


def test_the_end_of_a_channel_says_what_it_did(a: HostCredentials, b: HostCredentials) -> None:
    async def scenario() -> None:
        async with Side(b) as owner:
            async with Side(a) as asker:
                await asker.ask(owner)
            await until(lambda: not owner.is_connected, "the end is seen")
            assert owner.recorder.ends == ["closed by the peer (0 questions asked, 1 received)"]

    run(scenario())
