"""The sealed record of 80 bytes: what opens, and that nothing else does."""

from __future__ import annotations

import pytest

from slim.broker.admission.nonces import Nonces
from slim.broker.admission.preamble import (
    RECORD_BYTES,
    Kind,
    Record,
    RecordRefused,
    Sealer,
    open_record,
    parse_header,
)
from slim.broker.endpoints import Endpoint
from slim.plugins.encryption import aesgcm_cipher

KEY = bytes(range(32))
KEY_ID = 0xA1B2C3D4
LISTENER = Endpoint.parse("192.0.2.2:20001")
RECORD = Record(0xDEADBEEF, Kind.DATA, Endpoint.parse("10.1.0.1:40000"))
NONCES = Nonces.create()


def sealer(key: bytes = KEY) -> Sealer:
    return Sealer(KEY_ID, key, aesgcm_cipher.seal, NONCES)


def opened(raw: bytes, key: bytes = KEY, listener: Endpoint = LISTENER) -> Record:
    return open_record(raw, parse_header(raw), key, listener, aesgcm_cipher.open)


@pytest.mark.parametrize("kind", list(Kind))
@pytest.mark.parametrize("source", ["10.1.0.1:40000", "[fd00::1]:0", "255.255.255.255:65535"])
def test_what_was_sealed_opens(kind: Kind, source: str) -> None:
    record = Record(0xFFFFFFFF, kind, Endpoint.parse(source))
    raw = sealer().seal(record, LISTENER)
    assert len(raw) == RECORD_BYTES
    assert opened(raw) == record


def test_the_header_shows_key_and_nonce_only() -> None:
    raw = sealer().seal(RECORD, LISTENER)
    header = parse_header(raw)
    assert (header.key_id, header.prefix) == (KEY_ID, NONCES.prefix)
    assert raw[:12] == b"SLIM\x01\0\0\0\xa1\xb2\xc3\xd4"
    assert RECORD.source.address.packed not in raw


def test_every_flipped_bit_is_refused() -> None:
    raw = sealer().seal(RECORD, LISTENER)
    for position in range(RECORD_BYTES):
        for bit in range(8):
            changed = bytearray(raw)
            changed[position] ^= 1 << bit
            with pytest.raises(RecordRefused):
                opened(bytes(changed))


@pytest.mark.parametrize("length", [0, 1, 24, 79, 81, 160])
def test_every_other_length_is_refused(length: int) -> None:
    raw = (sealer().seal(RECORD, LISTENER) * 2)[:length]
    with pytest.raises(RecordRefused, match="truncated"):
        parse_header(raw)


@pytest.mark.parametrize(
    ("start", "reason"), [(b"GET / HTTP/1.1\r\n", "not-a-record"), (b"SLIM\x02", "version")]
)
def test_other_protocols_are_told_apart(start: bytes, reason: str) -> None:
    with pytest.raises(RecordRefused, match=reason):
        parse_header(start.ljust(RECORD_BYTES, b"\0"))


def test_another_key_does_not_open() -> None:
    with pytest.raises(RecordRefused, match="forged"):
        opened(sealer(bytes(32)).seal(RECORD, LISTENER))


@pytest.mark.parametrize("listener", ["192.0.2.2:20002", "192.0.2.3:20001", "[2001:db8::2]:20001"])
def test_a_record_is_worth_nothing_at_another_listener(listener: str) -> None:
    raw = sealer().seal(RECORD, LISTENER)
    with pytest.raises(RecordRefused, match="forged"):
        opened(raw, listener=Endpoint.parse(listener))


def test_a_kind_that_nobody_knows_is_refused() -> None:
    raw = sealer().seal(RECORD, LISTENER)

    def strange(key: bytes, nonce: bytes, sealed: bytes, associated: bytes) -> bytes:
        body = bytearray(aesgcm_cipher.open(key, nonce, sealed, associated))
        body[4] = 99
        return bytes(body)

    with pytest.raises(RecordRefused, match="forged"):
        open_record(raw, parse_header(raw), KEY, LISTENER, strange)


def test_a_cipher_that_gives_another_length_is_refused() -> None:
    raw = sealer().seal(RECORD, LISTENER)
    with pytest.raises(RecordRefused, match="forged"):
        open_record(raw, parse_header(raw), KEY, LISTENER, lambda *_: b"short")


def nonce_of(raw: bytes) -> tuple[bytes, int]:
    header = parse_header(raw)
    return header.prefix, header.counter


def test_no_nonce_is_used_twice_whatever_the_key() -> None:
    sealers = [sealer(), sealer(), sealer(bytes(32))]
    nonces = [nonce_of(each.seal(RECORD, LISTENER)) for each in sealers for _ in range(50)]
    assert len(set(nonces)) == len(nonces)
