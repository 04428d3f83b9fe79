"""Frames: every message survives, and nothing but FrameError comes of anything else."""

from __future__ import annotations

import random
import struct

import msgspec
import pytest

from slim.broker.peers import messages
from slim.broker.peers.frames import (
    MAX_LABELS,
    MAX_LIFETIME_MS,
    FrameDecoder,
    FrameError,
    encode,
    presentable,
)
from slim.broker.peers.messages import MAX_FRAME, MAX_TEXT

ADDRESS = bytes(range(16))
RESOLVE = messages.Resolve(1, "web", "shop", {"app": "web"}, ADDRESS, ADDRESS, 80, 25_000_000)
FAST = messages.ResolvedFast(2, ADDRESS, 20001, 0xFFFF_FFFF, 300_000, True, "rules:all", rate=1_000)
EVERY_KIND: list[messages.AnyPeerMessage] = [
    messages.Hello(2, "a", [ADDRESS], ["preamble"]),
    messages.Key(0xFFFF_FFFF, bytes(32), 60_000, 360_000),
    RESOLVE,
    FAST,
    messages.ResolvedOverlay(3, "no-listener", 30_000, False),
    messages.ResolvedDenied(4, 10_000, "rules:none"),
    messages.ResolvedUnknown(5),
    messages.Invalidate(ADDRESS, 0),
    messages.PolicyChanged(),
    messages.Relabelled("web", "shop", {"app": "db"}, ADDRESS),
    messages.Cut([messages.pack_end((ADDRESS, 80), (ADDRESS, 40_000))] * messages.MAX_ENDS),
    messages.Pace(None, []),
    messages.Pace(25_000_000, [messages.pack_end((ADDRESS, 80), (ADDRESS, 40_000))]),
    messages.Ping(6),
    messages.Pong(6),
]


def framed(payload: bytes) -> bytes:
    return struct.pack("!I", len(payload)) + payload


def raw(*values: object) -> bytes:
    """A frame with any values in a message's place."""
    return framed(msgspec.msgpack.encode(values))


def field_of(message: messages.AnyPeerMessage, **changes: object) -> bytes:
    """A frame with a field that `encode` would refuse."""
    changed = msgspec.structs.replace(message, **changes)
    return framed(msgspec.msgpack.encode(changed))


def test_every_kind_of_message_is_tried() -> None:
    kinds = {type(message) for message in EVERY_KIND}
    assert kinds == {*messages.AnyPeerMessage.__args__}


@pytest.mark.parametrize("message", EVERY_KIND, ids=lambda message: type(message).__name__)
def test_a_message_survives_the_wire(message: messages.AnyPeerMessage) -> None:
    assert FrameDecoder().feed(encode(message)) == [message]


def test_messages_survive_being_cut_anywhere_and_run_together() -> None:
    stream = b"".join(encode(message) for message in EVERY_KIND)
    for size in (1, 2, 3, 5, 7, 50, len(stream)):
        decoder = FrameDecoder()
        received = []
        for start in range(0, len(stream), size):
            received += decoder.feed(stream[start : start + size])
        assert received == EVERY_KIND


def test_an_incomplete_message_is_waited_for() -> None:
    frame = encode(RESOLVE)
    decoder = FrameDecoder()
    assert decoder.feed(frame[:-1]) == []
    assert decoder.feed(frame[-1:]) == [RESOLVE]


@pytest.mark.parametrize("length", [0, MAX_FRAME + 1, 0xFFFF_FFFF])
def test_a_length_out_of_bounds_is_refused_before_the_payload_comes(length: int) -> None:
    with pytest.raises(FrameError, match=f"frame of {length} bytes"):
        FrameDecoder().feed(struct.pack("!I", length))


@pytest.mark.parametrize(
    "frame",
    [
        pytest.param(raw("Nonsense", 1), id="unknown kind"),
        pytest.param(raw("Ping"), id="field missing"),
        pytest.param(raw("Ping", "1"), id="text for a number"),
        pytest.param(raw("Ping", 1.5), id="fraction"),
        pytest.param(raw("Ping", -1), id="negative"),
        pytest.param(raw("Ping", 2**63), id="beyond 63 bits"),
        pytest.param(raw("Ping", None), id="nothing"),
        pytest.param(raw("Ping", [[[[]]]]), id="list for a number"),
        pytest.param(framed(b"\x92\xa4Ping\x01\x01"), id="more after the message"),
        pytest.param(framed(msgspec.msgpack.encode({"token": 1})), id="map"),
        pytest.param(framed(b"\xc1"), id="no msgpack"),
        pytest.param(framed(b"\x92\xa4Pi\xff\xfe\x01"), id="kind that is no UTF-8"),
        pytest.param(framed(b"\x95\xa5Hello\x01\xa2\xff\xfe\x90\x90"), id="text that is no UTF-8"),
        pytest.param(framed(b"\x91" * 60_000), id="deep lists"),
        pytest.param(framed(b"\x92\xa4Ping" + b"\x91" * 60_000), id="deep lists in a field"),
        pytest.param(
            framed(b"\x93\xa4Ping\x01" + b"\x91" * 60_000), id="deep lists after all fields"
        ),
        pytest.param(framed(b"\x81\xa1a" * 20_000), id="deep maps"),
        pytest.param(framed(b"\xdd\xff\xff\xff\xff"), id="list of 4 G"),
        pytest.param(framed(b"\x95\xa5Hello\x01\xa1a\xdd\xff\xff\xff\xff"), id="addresses of 4 G"),
        pytest.param(framed(b"\x98\xa7Resolve\x01\xa1w\xa1n\xdf\xff\xff\xff\xff"), id="map of 4 G"),
        pytest.param(framed(b"\x92\xa4Ping\xc6\xff\xff\xff\xff"), id="bytes of 4 G"),
    ],
)
def test_what_is_no_message_is_refused(frame: bytes) -> None:
    with pytest.raises(FrameError):
        FrameDecoder().feed(frame)


OUT_OF_BOUNDS: list[tuple[messages.AnyPeerMessage, str, object]] = [
    (RESOLVE, "source", ADDRESS[:15]),
    (RESOLVE, "destination", ADDRESS + b"\0"),
    (RESOLVE, "port", 65536),
    (RESOLVE, "workload", "x" * (MAX_TEXT + 1)),
    (RESOLVE, "namespace", "line\nanother line"),
    (RESOLVE, "labels", {str(number): "" for number in range(MAX_LABELS + 1)}),
    (RESOLVE, "labels", {"x" * (MAX_TEXT + 1): ""}),
    (RESOLVE, "labels", {"app": "x" * (MAX_TEXT + 1)}),
    (RESOLVE, "labels", {"app": "\x1b[2J"}),
    (FAST, "host_address", b""),
    (FAST, "host_port", 65536),
    (FAST, "flow", 2**32),
    (FAST, "lifetime_ms", MAX_LIFETIME_MS + 1),
    (EVERY_KIND[0], "addresses", [b"1234"]),
    (EVERY_KIND[0], "addresses", [ADDRESS] * 65),
    (EVERY_KIND[0], "features", ["x" * (MAX_TEXT + 1)]),
    (messages.Cut([]), "ends", [bytes(messages.END_BYTES - 1)]),
    (messages.Cut([]), "ends", [bytes(messages.END_BYTES)] * (messages.MAX_ENDS + 1)),
    (EVERY_KIND[1], "key", bytes(16)),
    (EVERY_KIND[1], "key_id", 2**32),
    (EVERY_KIND[1], "accept_ms", 2**40),
]


@pytest.mark.parametrize(("message", "name", "value"), OUT_OF_BOUNDS)
def test_a_field_out_of_bounds_is_refused_and_not_sent(
    message: messages.AnyPeerMessage, name: str, value: object
) -> None:
    with pytest.raises(FrameError, match=f"{type(message).__name__}.{name} is out of bounds"):
        FrameDecoder().feed(field_of(message, **{name: value}))
    with pytest.raises(ValueError, match=f"{name} is out of bounds"):
        encode(msgspec.structs.replace(message, **{name: value}))


def test_a_message_with_all_labels_at_their_limit_is_not_sent_if_its_frame_would_be_too_large() -> (
    None
):
    labels = {f"{number:0>256}": "\u00fc" * 256 for number in range(MAX_LABELS)}
    fits = msgspec.structs.replace(RESOLVE, labels=labels)
    assert FrameDecoder().feed(encode(fits)) == [fits]
    labels = {f"{number:\U0001f600>256}": "\U0001f600" * 256 for number in range(MAX_LABELS)}
    with pytest.raises(ValueError, match="bytes"):
        encode(msgspec.structs.replace(RESOLVE, labels=labels))


def test_presentable_text_can_be_sent_and_shown() -> None:
    assert presentable("rules:all") == "rules:all"
    text = presentable("rules:\x1b[2J\nevil" + "x" * 1000)
    assert text.startswith("rules:?[2J?evil")
    encode(msgspec.structs.replace(FAST, rule=text))


def test_what_an_error_says_of_the_bytes_can_be_logged() -> None:
    with pytest.raises(FrameError) as caught:
        FrameDecoder().feed(raw("\x1b[2J\n" + "x" * 50_000, 1))
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) <= MAX_TEXT


def test_random_bytes_end_in_messages_or_in_a_frame_error() -> None:
    source = random.Random(20)
    refused = 0
    for _ in range(20_000):
        payload = source.randbytes(source.randrange(1, 60))
        try:
            FrameDecoder().feed(source.choice([payload, framed(payload)]))
        except FrameError:
            refused += 1
    assert refused > 10_000


def test_damaged_messages_end_in_messages_within_bounds_or_in_a_frame_error() -> None:
    source = random.Random(21)
    taken = refused = 0
    for _ in range(40_000):
        damaged = bytearray(encode(source.choice(EVERY_KIND)))
        for _ in range(source.randrange(1, 4)):
            damaged[source.randrange(4, len(damaged))] = source.randrange(256)
        try:
            for message in FrameDecoder().feed(bytes(damaged)):
                encode(message)
                taken += 1
        except FrameError:
            refused += 1
    assert taken > 1_000
    assert refused > 1_000
