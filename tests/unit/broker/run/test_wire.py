"""The small codec and msgspec's read what the other wrote."""

from __future__ import annotations

import msgspec
import pytest

from slim.broker.local import messages
from slim.broker.run import wire

DECODER = msgspec.msgpack.Decoder(messages.RunRequest)


def test_constants_are_those_of_the_definition() -> None:
    assert wire.PROTOCOL == messages.PROTOCOL
    assert wire.MAX_DATAGRAM == messages.MAX_DATAGRAM


@pytest.mark.parametrize(
    "request_",
    [
        messages.PrepareNamespace("blue", None),
        messages.PrepareNamespace("ü" * 200, "fd00::1"),
        messages.Register(
            workload="web",
            namespace="default",
            labels={"a": "1", "tier": "", "x" * 300: "y" * 3000},
            overlay="blue",
            fail_mode="closed",
            command=["nginx", "-g", ""],
            prepared="prepared-1",
        ),
        messages.Register(
            workload=None,
            namespace="n",
            labels={},
            overlay=None,
            fail_mode="open",
            command=["x"] * 40,
            prepared=None,
        ),
    ],
)
def test_requests_are_read_back_by_msgspec(request_: messages.Message) -> None:
    raw = wire.encode(type(request_).__name__, *msgspec.structs.astuple(request_))
    assert DECODER.decode(raw) == request_


@pytest.mark.parametrize(
    "answer",
    [
        messages.Offer(messages.PROTOCOL, b""),
        messages.Offer(127, bytes(200)),
        messages.Offer(200, bytes(range(256)) * 5),
        messages.Offer(2**15, b"x" * 60000),
        messages.Offer(2**31, b"x" * 70000),
        messages.Offer(2**63, b"x"),
        messages.Namespace(""),
        messages.Namespace("a" * 31),
        messages.Ack("a" * 32),
        messages.Ack("é" * 200),
        messages.Refuse("m" * 70000, ""),
    ],
)
def test_answers_of_msgspec_are_read_back(answer: messages.Message) -> None:
    tag, fields = wire.decode(msgspec.msgpack.encode(answer))
    assert tag == type(answer).__name__
    assert tuple(fields) == msgspec.structs.astuple(answer)


def test_every_shorter_or_longer_message_is_refused() -> None:
    raw = msgspec.msgpack.encode(messages.Offer(300, b"x" * 300))
    for length in range(len(raw)):
        with pytest.raises(ValueError):
            wire.decode(raw[:length])
    with pytest.raises(ValueError, match="more than one"):
        wire.decode(raw + b"\0")


@pytest.mark.parametrize(
    "value",
    [
        *({}, "Ack", 1, None, [], [1, 2]),
        *(["Ack", None], ["Ack", ["nested"]], ["Ack", {"a": 1}]),
        *(["Ack", -1], ["Ack", True], ["Ack", 1.5], ["Ack", *["x"] * 20]),
    ],
)
def test_what_is_no_answer_is_refused(value: object) -> None:
    with pytest.raises(ValueError):
        wire.decode(msgspec.msgpack.encode(value))


def test_text_that_is_not_utf8_is_refused() -> None:
    with pytest.raises(ValueError):
        wire.decode(b"\x92\xa3Ack\xa1\xff")
