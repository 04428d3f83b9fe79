"""Rendezvous between two backends over loopback, and what strangers can do to it."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import socket
from typing import TYPE_CHECKING

import msgspec
import pytest

from slim.broker.discovery import Located
from slim.broker.endpoints import Endpoint, packed16, parse_address
from slim.broker.peers import pki
from slim.plugins.discovery import rendezvous
from slim.plugins.discovery.rendezvous import MAGIC, QUESTION, VERSION, Answer, Rendezvous
from support.lending import LoopbackContext, sign_as

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from slim.broker.endpoints import Address

ASKER = 1
WORKLOAD = 2
HERE = parse_address("127.0.77.1")
ELSEWHERE = parse_address("127.0.77.9")
CONTROL = Endpoint.parse("192.168.77.2:7946")
CERTIFICATES = {
    "a": [ipaddress.ip_network("127.0.78.0/24")],
    "b": [ipaddress.ip_network("127.0.77.0/24"), ipaddress.ip_network("::1/128")],
}
FOUND = Located("b", CONTROL, 10.0)
REFUSED = Located(None, None, 10.0)
SILENT = Located(None, None, 5.0)
NONCE = bytes(range(16))


@pytest.fixture
def port() -> int:
    """A UDP port that nobody has at HERE."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((str(HERE), 0))
        return int(sock.getsockname()[1])


@pytest.fixture
def answering(port: int) -> LoopbackContext:
    return LoopbackContext(
        host="b", control=CONTROL, rendezvous_port=port, certificates=CERTIFICATES
    )


@pytest.fixture
def asking(port: int) -> LoopbackContext:
    return LoopbackContext(
        host="a",
        control=Endpoint.parse("192.168.77.1:7946"),
        rendezvous_port=port,
        certificates=CERTIFICATES,
    )


@pytest.fixture(autouse=True)
def no_socket_is_left_open(answering: LoopbackContext, asking: LoopbackContext) -> Iterator[None]:
    yield
    left = [sock for sock in answering.sockets + asking.sockets if sock.fileno() != -1]
    for sock in left:
        sock.close()
    assert not left


@contextlib.asynccontextmanager
async def backend(context: LoopbackContext, *addresses: Address) -> AsyncIterator[Rendezvous]:
    made = Rendezvous(context)
    if addresses:
        made.workload_added(WORKLOAD, addresses)
    try:
        yield made
    finally:
        made.close()
        await eventually(lambda: not made._asking)


async def eventually(condition: Callable[[], object], timeout_s: float = 5.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - what is waited for is state, not an event
            await asyncio.sleep(0.002)


@contextlib.contextmanager
def stranger(address: Address, port: int) -> Iterator[socket.socket]:
    """A socket of some program's, at the rendezvous port or anywhere."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((str(address), port))
        sock.setblocking(False)
        yield sock


def question(*, address: Address = HERE, magic: bytes = MAGIC, version: int = VERSION) -> bytes:
    return QUESTION.pack(magic, version, NONCE, packed16(address))


async def ask(sock: socket.socket, data: bytes, port: int) -> bytes | None:
    """The answer to raw bytes; None when there is none before that to a good question."""
    loop = asyncio.get_running_loop()
    good = QUESTION.pack(MAGIC, VERSION, bytes(16), packed16(HERE))
    await loop.sock_sendto(sock, data, (str(HERE), port))
    await loop.sock_sendto(sock, good, (str(HERE), port))
    async with asyncio.timeout(5):
        answer = await loop.sock_recv(sock, 65536)
        if statement_of(answer).nonce == bytes(16):
            return None
        # The one to the good question.
        await loop.sock_recv(sock, 65536)
    return answer


def statement_of(answer: bytes) -> rendezvous.Statement:
    return rendezvous._decode_statement(rendezvous._decode_answer(answer).statement)


# --- finding


def test_the_slimd_of_a_workload_answers_for_its_address(
    answering: LoopbackContext, asking: LoopbackContext
) -> None:
    async def scenario() -> Located | None:
        async with backend(answering, HERE), backend(asking) as asker:
            return await asker.locate(ASKER, HERE)

    assert asyncio.run(scenario()) == FOUND


def test_it_answers_over_ipv6_too(answering: LoopbackContext, asking: LoopbackContext) -> None:
    there = parse_address("::1")

    async def scenario() -> Located | None:
        async with backend(answering, there), backend(asking) as asker:
            return await asker.locate(ASKER, there)

    assert asyncio.run(scenario()) == FOUND


def test_a_refused_question_means_that_nobody_brokers_the_address(asking: LoopbackContext) -> None:
    async def scenario() -> Located | None:
        async with backend(asking) as asker:
            return await asker.locate(ASKER, HERE)

    assert asyncio.run(scenario()) == REFUSED


def test_silence_means_it_for_a_shorter_time(
    asking: LoopbackContext, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rendezvous, "WAIT_S", 0.05)

    async def scenario() -> Located | None:
        with stranger(HERE, port):
            async with backend(asking) as asker:
                return await asker.locate(ASKER, HERE)

    assert asyncio.run(scenario()) == SILENT


def test_a_lost_question_is_asked_again_with_the_same_nonce(
    asking: LoopbackContext, port: int
) -> None:
    async def scenario() -> tuple[Located | None, list[bytes]]:
        loop = asyncio.get_running_loop()
        with stranger(HERE, port) as sock:
            async with backend(asking) as asker:
                task = asyncio.create_task(asker.locate(ASKER, HERE))
                lost, _ = await loop.sock_recvfrom(sock, 2048)
                again, sender = await loop.sock_recvfrom(sock, 2048)
                nonce = QUESTION.unpack(again)[2]
                await loop.sock_sendto(sock, answer_to(nonce), sender)
                return await task, [lost, again]

    located, questions = asyncio.run(scenario())
    assert located == FOUND
    assert questions[0] == questions[1]


def test_no_route_means_it_for_a_shorter_time(asking: LoopbackContext) -> None:
    asking.failures = [OSError(errno.EHOSTUNREACH, "No route to host")]

    async def scenario() -> Located | None:
        async with backend(asking) as asker:
            return await asker.locate(ASKER, HERE)

    assert asyncio.run(scenario()) == SILENT


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EPERM, errno.ENOENT])
def test_a_fault_of_this_host_says_nothing_about_the_address(
    asking: LoopbackContext, number: int, caplog: pytest.LogCaptureFixture
) -> None:
    asking.failures = [OSError(number, "fault")]

    async def scenario() -> Located | None:
        async with backend(asking) as asker:
            return await asker.locate(ASKER, HERE)

    assert asyncio.run(scenario()) is None
    assert "could not be asked" in caplog.text


def test_without_a_control_channel_it_neither_asks_nor_answers(
    answering: LoopbackContext, asking: LoopbackContext
) -> None:
    answering.control = asking.control = None

    async def scenario() -> Located | None:
        async with backend(answering, HERE), backend(asking) as asker:
            return await asker.locate(ASKER, HERE)

    assert asyncio.run(scenario()) is None
    assert not answering.sockets + asking.sockets


# --- sharing and giving up


def test_concurrent_callers_share_one_question(
    answering: LoopbackContext, asking: LoopbackContext
) -> None:
    async def scenario() -> tuple[list[Located | None], int]:
        async with backend(answering, HERE), backend(asking) as asker:
            located = await asyncio.gather(*[asker.locate(ASKER, HERE) for _ in range(20)])
            return located, asker.counters["asked"]

    assert asyncio.run(scenario()) == ([FOUND] * 20, 1)


def test_each_workload_asks_for_itself(answering: LoopbackContext, asking: LoopbackContext) -> None:
    # Two workloads may be on overlays with the same addresses.
    async def scenario() -> int:
        async with backend(answering, HERE), backend(asking) as asker:
            await asyncio.gather(asker.locate(ASKER, HERE), asker.locate(ASKER + 1, HERE))
            return asker.counters["asked"]

    assert asyncio.run(scenario()) == 2


def test_a_caller_that_gives_up_leaves_the_question_to_the_next(
    asking: LoopbackContext, port: int
) -> None:
    async def scenario() -> tuple[Located | None, int]:
        loop = asyncio.get_running_loop()
        with stranger(HERE, port) as sock:
            async with backend(asking) as asker:
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(asker.locate(ASKER, HERE), 0.01)
                later = asyncio.create_task(asker.locate(ASKER, HERE))
                data, sender = await loop.sock_recvfrom(sock, 2048)
                await loop.sock_sendto(sock, answer_to(QUESTION.unpack(data)[2]), sender)
                return await later, asker.counters["asked"]

    assert asyncio.run(scenario()) == (FOUND, 1)


def test_the_number_of_questions_under_way_is_bounded(
    asking: LoopbackContext, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rendezvous, "MAX_ASKING", 2)

    async def scenario() -> Located | None:
        with stranger(HERE, port):
            async with backend(asking) as asker:
                pending = [asyncio.create_task(asker.locate(n, HERE)) for n in (1, 2)]
                await eventually(lambda: len(asker._asking) == 2)
                located = await asker.locate(3, HERE)
                asker.close()
                assert await asyncio.gather(*pending) == [None, None]
                return located

    assert asyncio.run(scenario()) is None


def test_a_workload_that_goes_takes_its_questions_with_it(
    asking: LoopbackContext, port: int
) -> None:
    async def scenario() -> list[Located | None]:
        with stranger(HERE, port):
            async with backend(asking) as asker:
                pending = [asyncio.create_task(asker.locate(n, HERE)) for n in (1, 2)]
                await eventually(lambda: len(asking.sockets) == 2)
                asker.workload_removed(1)
                await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                assert [task.done() for task in pending] == [True, False]
                asker.close()
                return await asyncio.gather(*pending)

    assert asyncio.run(scenario()) == [None, None]


# --- answers that are not to be believed


def answer_to(nonce: bytes, /, **changes: object) -> bytes:
    """What host b answers to a question about HERE, with changes."""
    signed_by = changes.pop("signed_by", "b")
    certificate = b"certificate of " + str(changes.pop("certificate_of", "b")).encode()
    statement = rendezvous.Statement(
        nonce, packed16(HERE), "b", packed16(CONTROL.address), CONTROL.port, 10
    )
    packed = msgspec.msgpack.encode(msgspec.structs.replace(statement, **changes))
    signature = sign_as(str(signed_by), rendezvous.SIGNED + packed + certificate)
    return msgspec.msgpack.encode(Answer(packed, certificate, signature))


async def asked_with(
    asking: LoopbackContext, port: int, make: Callable[[bytes], bytes]
) -> tuple[Located | None, int]:
    """What comes of one bad answer followed by the right one, and how many were ignored."""
    loop = asyncio.get_running_loop()
    with stranger(HERE, port) as sock:
        async with backend(asking) as asker:
            task = asyncio.create_task(asker.locate(ASKER, HERE))
            data, sender = await loop.sock_recvfrom(sock, 2048)
            nonce = QUESTION.unpack(data)[2]
            await loop.sock_sendto(sock, make(nonce), sender)
            await loop.sock_sendto(sock, answer_to(nonce), sender)
            return await task, asker.counters["answers_ignored"]


@pytest.mark.parametrize(
    "changes",
    [
        {"nonce": bytes(16)},
        {"address": packed16(ELSEWHERE)},
        {"host": "c"},
        {"signed_by": "a"},
        {"certificate_of": "a", "signed_by": "a", "host": "a"},
        {"certificate_of": "nobody", "signed_by": "nobody", "host": "nobody"},
        {"certificate_of": "a"},
        {"control_port": 0},
        {"control_port": 65536},
        {"control_address": bytes(16)},
        {"control_address": packed16(parse_address("224.0.0.1"))},
        {"control_address": b"1234"},
        {"lifetime_s": 0},
        {"host": ""},
        {"host": "x" * 256},
    ],
    ids=str,
)
def test_an_answer_that_does_not_fit_is_ignored(
    asking: LoopbackContext, port: int, changes: dict[str, object]
) -> None:
    def bad(nonce: bytes) -> bytes:
        made = answer_to(nonce, **changes)
        assert made != answer_to(nonce)
        return made

    assert asyncio.run(asked_with(asking, port, bad)) == (FOUND, 1)


@pytest.mark.parametrize(
    "garble",
    [
        lambda answer: b"",
        lambda answer: b"\xc1",
        lambda answer: answer[:-1],
        lambda answer: answer + b"\0",
        lambda answer: answer.replace(b"certificate", b"Certificate"),
        lambda answer: msgspec.msgpack.encode([1, 2, 3]),
        lambda answer: bytes(QUESTION.size + 1),
    ],
)
def test_a_garbled_answer_is_ignored(
    asking: LoopbackContext, port: int, garble: Callable[[bytes], bytes]
) -> None:
    located, ignored = asyncio.run(asked_with(asking, port, lambda nonce: garble(answer_to(nonce))))
    assert (located, ignored) == (FOUND, 1)


def test_a_longer_lifetime_than_ours_is_cut(asking: LoopbackContext, port: int) -> None:
    located, ignored = asyncio.run(
        asked_with(asking, port, lambda nonce: answer_to(nonce, lifetime_s=86400))
    )
    assert (located, ignored) == (FOUND, 0)


def test_a_stream_of_rubbish_is_not_read_for_ever(
    asking: LoopbackContext, port: int, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> Located | None:
        loop = asyncio.get_running_loop()
        with stranger(HERE, port) as sock:
            async with backend(asking) as asker:
                task = asyncio.create_task(asker.locate(ASKER, HERE))
                _, sender = await loop.sock_recvfrom(sock, 2048)
                for _ in range(rendezvous.MAX_BAD_ANSWERS):
                    await loop.sock_sendto(sock, b"rubbish", sender)
                return await task

    assert asyncio.run(scenario()) == SILENT
    assert "not in charge" in caplog.text


# --- answering strangers


@pytest.mark.parametrize(
    "data",
    [
        b"",
        question()[:-1],
        question() + b"\0",
        question(magic=b"XXXX"),
        question(version=VERSION + 1),
        question(address=ELSEWHERE),
    ],
    ids=["empty", "short", "long", "magic", "version", "address"],
)
def test_what_is_no_question_about_the_address_gets_no_answer(
    answering: LoopbackContext, port: int, data: bytes
) -> None:
    async def scenario() -> tuple[bytes | None, int]:
        async with backend(answering, HERE) as answerer:
            with stranger(ELSEWHERE, 0) as sock:
                return await ask(sock, data, port), answerer.counters["questions_ignored"]

    assert asyncio.run(scenario()) == (None, 1)


def test_an_answer_is_never_longer_than_its_question(answering: LoopbackContext, port: int) -> None:
    async def scenario() -> bytes | None:
        async with backend(answering, HERE):
            with stranger(ELSEWHERE, 0) as sock:
                return await ask(sock, question(), port)

    answer = asyncio.run(scenario())
    assert answer is not None
    assert len(answer) <= len(question())
    assert statement_of(answer).nonce == NONCE


def test_a_host_with_too_long_a_certificate_says_so_once_and_does_not_answer(
    answering: LoopbackContext, port: int, caplog: pytest.LogCaptureFixture
) -> None:
    answering.host = "b" * 1200

    async def scenario() -> None:
        async with backend(answering, HERE) as answerer:
            with stranger(ELSEWHERE, 0) as sock:
                for _ in range(3):
                    sock.sendto(question(), (str(HERE), port))
                await eventually(lambda: answerer.counters["answers_too_long"] == 3)
                with pytest.raises(BlockingIOError):
                    sock.recv(2048)

    # The name is the fake certificate; what is too long for a Statement does not matter here.
    asyncio.run(scenario())
    assert len(caplog.records) == 1
    assert "certificate with fewer networks" in caplog.text


def test_a_real_certificate_with_several_networks_leaves_the_answer_short_enough(
    tmp_path: Path,
) -> None:
    pki.create_authority(tmp_path, name="an authority with quite a long name", days=1)
    networks = [f"10.77.{number}.0/24" for number in range(8)]
    certificate, key = pki.issue_certificate(
        tmp_path, "a-host-with-quite-a-long-name", networks, days=1, out=tmp_path
    )
    credentials = pki.load_host_credentials(certificate, key, tmp_path / pki.AUTHORITY_CERTIFICATE)

    class RealContext(LoopbackContext):
        @property
        def certificate(self) -> bytes:
            return credentials.certificate_der

        def sign(self, data: bytes) -> bytes:
            return pki.sign_statement(credentials.key, data)

    context = RealContext(host="a-host-with-quite-a-long-name", control=CONTROL)
    answer = Rendezvous(context)._answer(NONCE, HERE)
    assert answer is not None
    assert len(answer) <= QUESTION.size


def test_a_flood_is_answered_at_a_limited_rate_and_then_as_before(
    answering: LoopbackContext, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rendezvous, "BURST", 5.0)
    monkeypatch.setattr(rendezvous, "ANSWERS_PER_S", 20.0)

    async def scenario() -> tuple[int, float]:
        loop = asyncio.get_running_loop()
        async with backend(answering, HERE) as answerer:
            answerer._answering[WORKLOAD].tokens = 5.0
            started = loop.time()
            with stranger(ELSEWHERE, 0) as sock:
                for _ in range(50):
                    await loop.sock_sendto(sock, question(), (str(HERE), port))
                await eventually(lambda: answerer.counters["throttled"])
                at_once = answerer.counters["answered"]
                await eventually(lambda: answerer.counters["answered"] > at_once + 2)
            return answerer.counters["answered"], loop.time() - started

    answered, elapsed = asyncio.run(scenario())
    assert answered <= 5 + 20 * elapsed


def test_rubbish_cannot_keep_slimd_busy(
    answering: LoopbackContext, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rendezvous, "ANSWERS_PER_S", 0.0)
    monkeypatch.setattr(rendezvous, "PAUSE_S", 60.0)

    async def scenario() -> tuple[int, int]:
        async with backend(answering, HERE) as answerer:
            answerer._answering[WORKLOAD].tokens = 2.0
            with stranger(ELSEWHERE, 0) as sock:
                for _ in range(100):
                    sock.sendto(b"rubbish", (str(HERE), port))
                await eventually(lambda: answerer.counters["throttled"])
                for _ in range(100):
                    sock.sendto(b"rubbish", (str(HERE), port))
                await asyncio.sleep(0)
            return answerer.counters["questions_ignored"], answerer.counters["throttled"]

    ignored, throttled = asyncio.run(scenario())
    assert ignored <= 10
    assert throttled == 1


# --- workloads that come, change and go


def test_a_port_that_a_program_has_is_left_to_it(
    answering: LoopbackContext, port: int, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> tuple[int, int]:
        with stranger(HERE, port):
            async with backend(answering, HERE, ELSEWHERE) as answerer:
                before = len(answerer._answering[WORKLOAD].sockets)
                waiting = len(answerer._answering[WORKLOAD].timers)
                return before, waiting

    assert asyncio.run(scenario()) == (1, 0)
    assert [record.message for record in caplog.records] == [
        f"a program has {HERE} udp port {port}: no rendezvous there"
    ]


def test_a_port_given_up_is_tried_again_when_the_workload_is_added_again(
    answering: LoopbackContext, asking: LoopbackContext, port: int
) -> None:
    async def scenario() -> Located | None:
        async with backend(answering) as answerer, backend(asking) as asker:
            with stranger(HERE, port):
                answerer.workload_added(WORKLOAD, (HERE,))
            answerer.workload_added(WORKLOAD, (HERE,))
            return await asker.locate(ASKER, HERE)

    assert asyncio.run(scenario()) == FOUND


def test_an_address_that_is_not_ready_yet_is_tried_again(
    answering: LoopbackContext, asking: LoopbackContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rendezvous, "NOT_YET_RETRY_S", 0.001)
    answering.failures = [OSError(errno.EADDRNOTAVAIL, "tentative")] * 2

    async def scenario() -> Located | None:
        async with backend(answering, HERE) as answerer, backend(asking) as asker:
            await eventually(lambda: answerer._answering[WORKLOAD].sockets)
            return await asker.locate(ASKER, HERE)

    assert asyncio.run(scenario()) == FOUND


def test_an_address_that_never_gets_ready_is_given_up(
    answering: LoopbackContext, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(rendezvous, "NOT_YET_RETRY_S", 0.001)
    answering.failures = [OSError(errno.EADDRNOTAVAIL, "tentative")] * 100

    async def scenario() -> None:
        async with backend(answering, HERE):
            await eventually(lambda: caplog.records)

    asyncio.run(scenario())
    assert len(answering.failures) == 100 - rendezvous.NOT_YET_TRIES


def test_a_workload_that_goes_while_its_address_is_not_ready_is_not_tried_again(
    answering: LoopbackContext,
) -> None:
    answering.failures = [OSError(errno.EADDRNOTAVAIL, "tentative")]

    async def scenario() -> bool:
        async with backend(answering, HERE) as answerer:
            timer = answerer._answering[WORKLOAD].timers[HERE]
            answerer.workload_removed(WORKLOAD)
            return timer.cancelled()

    assert asyncio.run(scenario())


def test_new_addresses_are_answered_for_and_old_ones_no_more(
    answering: LoopbackContext, asking: LoopbackContext, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> list[Located | None]:
        async with backend(answering, HERE) as answerer, backend(asking) as asker:
            kept = answerer._answering[WORKLOAD].sockets[HERE]
            answerer.workload_added(WORKLOAD, (HERE, ELSEWHERE))
            assert answerer._answering[WORKLOAD].sockets[HERE] is kept
            both = [await asker.locate(ASKER, address) for address in (HERE, ELSEWHERE)]
            answerer.workload_added(WORKLOAD, (ELSEWHERE,))
            one = [await asker.locate(ASKER, address) for address in (HERE, ELSEWHERE)]
            return both + one

    assert asyncio.run(scenario()) == [FOUND, FOUND, REFUSED, FOUND]
    # What is there already is not bound a second time.
    assert not caplog.records


def test_a_workload_that_is_gone_is_not_answered_for(
    answering: LoopbackContext, asking: LoopbackContext
) -> None:
    async def scenario() -> Located | None:
        async with backend(answering, HERE) as answerer, backend(asking) as asker:
            answerer.workload_removed(WORKLOAD)
            answerer.workload_removed(WORKLOAD)
            return await asker.locate(ASKER, HERE)

    assert asyncio.run(scenario()) == REFUSED


def test_a_throttled_workload_that_goes_is_not_read_again(
    answering: LoopbackContext, port: int
) -> None:
    async def scenario() -> bool:
        async with backend(answering, HERE) as answerer:
            answerer._answering[WORKLOAD].tokens = -1e6
            with stranger(ELSEWHERE, 0) as sock:
                sock.sendto(question(), (str(HERE), port))
                await eventually(lambda: answerer.counters["throttled"])
            timer = answerer._answering[WORKLOAD].timers[HERE]
            answerer.workload_removed(WORKLOAD)
            return timer.cancelled()

    assert asyncio.run(scenario())
