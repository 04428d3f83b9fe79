"""Frames of the control channel: a 4-byte big-endian length, then one message as msgpack.

Pure: bytes in, messages out. Nothing a peer sends makes this raise anything but FrameError, or
keep more than one frame in memory. What `encode` gives, the peer's decoder takes: both check the
same bounds.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

import msgspec

from slim.broker.peers.messages import (
    END_BYTES,
    MAX_ENDS,
    MAX_FRAME,
    MAX_TEXT,
    AnyPeerMessage,
)
from slim.broker.shaping import MAX_RATE, MIN_RATE

_LENGTH = struct.Struct("!I")
_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[AnyPeerMessage] = msgspec.msgpack.Decoder(AnyPeerMessage)

MAX_LABELS = 64
MAX_ITEMS = 64
MAX_LIFETIME_MS = 24 * 3600 * 1000
_ADDRESS_BYTES = 16
_KEY_BYTES = 32
_ADDRESS_FIELDS = frozenset({"source", "destination", "host_address"})
_PORT_FIELDS = frozenset({"port", "host_port"})
_U32_FIELDS = frozenset({"flow", "key_id"})
_TIME_FIELDS = frozenset({"lifetime_ms", "seal_ms", "accept_ms"})


class FrameError(ConnectionError):
    """The peer sent what no slimd sends; the channel is of no further use."""


def encode(message: AnyPeerMessage) -> bytes:
    """One frame; ValueError when the message is one that the peer would refuse."""
    wrong = _find_wrong(message)
    if wrong:
        raise ValueError(f"{type(message).__name__}.{wrong} is out of bounds")
    payload = _encoder.encode(message)
    if len(payload) > MAX_FRAME:
        raise ValueError(f"{type(message).__name__} of {len(payload)} bytes")
    return _LENGTH.pack(len(payload)) + payload


def presentable(text: str) -> str:
    """The text as `encode` takes it: cut, and without what would upset a terminal or a log."""
    return "".join(char if char.isprintable() else "?" for char in text[:MAX_TEXT])


class FrameDecoder:
    """Collects bytes and gives whole messages."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[AnyPeerMessage]:
        """The messages that are complete now; FrameError on anything malformed."""
        self._buffer += data
        messages = []
        while len(self._buffer) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._buffer)
            if not 0 < length <= MAX_FRAME:
                raise FrameError(f"frame of {length} bytes")
            end = _LENGTH.size + length
            if len(self._buffer) < end:
                break
            messages.append(_decode(bytes(self._buffer[_LENGTH.size : end])))
            del self._buffer[:end]
        return messages


def _decode(payload: bytes) -> AnyPeerMessage:
    try:
        message = _decoder.decode(payload)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise FrameError(presentable(f"malformed message: {error}")) from None
    wrong = _find_wrong(message)
    if wrong:
        raise FrameError(f"{type(message).__name__}.{wrong} is out of bounds")
    return message


def _find_wrong(message: AnyPeerMessage) -> str:
    """The name of a field with a value that no slimd sends; empty if there is none."""
    for name in message.__struct_fields__:
        if not _fits(name, getattr(message, name)):
            return name
    return ""


def _fits(name: str, value: object) -> bool:
    if name == "rate":
        return value is None or (isinstance(value, int) and MIN_RATE <= value <= MAX_RATE)
    if isinstance(value, str):
        return _is_text(value)
    if isinstance(value, bytes):
        return len(value) == (_ADDRESS_BYTES if name in _ADDRESS_FIELDS else _KEY_BYTES)
    if isinstance(value, bool):
        return True
    if isinstance(value, int):
        return 0 <= value <= _largest(name)
    if isinstance(value, Mapping):
        return len(value) <= MAX_LABELS and all(
            _is_text(key) and _is_text(text) for key, text in value.items()
        )
    if isinstance(value, list) and name == "ends":
        return len(value) <= MAX_ENDS and all(
            isinstance(item, bytes) and len(item) == END_BYTES for item in value
        )
    if isinstance(value, list):
        return len(value) <= MAX_ITEMS and all(
            len(item) == _ADDRESS_BYTES if isinstance(item, bytes) else _is_text(item)
            for item in value
        )
    return False


def _is_text(text: str) -> bool:
    """Whether it may be shown: it ends up in logs and on terminals."""
    return len(text) <= MAX_TEXT and text.isprintable()


def _largest(name: str) -> int:
    if name in _PORT_FIELDS:
        return 0xFFFF
    if name in _U32_FIELDS:
        return 0xFFFF_FFFF
    if name in _TIME_FIELDS:
        return MAX_LIFETIME_MS
    return (1 << 63) - 1
