"""Frames of the control channel: a 4-byte big-endian length, then one message as msgpack.

Pure: bytes in, messages out. Nothing a peer sends makes this raise anything but FrameError, or
keep more than one frame in memory.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

import msgspec

from slim.broker.peers.messages import MAX_FRAME, MAX_TEXT, AnyPeerMessage

_LENGTH = struct.Struct("!I")
_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[AnyPeerMessage] = msgspec.msgpack.Decoder(AnyPeerMessage)

MAX_LABELS = 64
MAX_ITEMS = 64
_ADDRESS_FIELDS = frozenset({"source", "destination", "host_address"})
_PORT_FIELDS = frozenset({"port", "host_port"})
_U32_FIELDS = frozenset({"flow", "key_id"})


class FrameError(ConnectionError):
    """The peer sent what no slimd sends; the channel is of no further use."""


def encode(message: AnyPeerMessage) -> bytes:
    """One frame; ValueError when the message is too large to be taken."""
    payload = _encoder.encode(message)
    if len(payload) > MAX_FRAME:
        raise ValueError(f"{type(message).__name__} of {len(payload)} bytes")
    return _LENGTH.pack(len(payload)) + payload


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
    except (msgspec.DecodeError, RecursionError) as error:
        raise FrameError(f"malformed message: {error}") from None
    for name in message.__struct_fields__:
        _check(type(message).__name__, name, getattr(message, name))
    return message


def _check(kind: str, name: str, value: object) -> None:
    if isinstance(value, str):
        fits = len(value) <= MAX_TEXT
    elif isinstance(value, bytes):
        fits = len(value) == (16 if name in _ADDRESS_FIELDS else 32)
    elif isinstance(value, bool):
        fits = True
    elif isinstance(value, int):
        limit = 1 << 16 if name in _PORT_FIELDS else 1 << 32 if name in _U32_FIELDS else 1 << 63
        fits = 0 <= value < limit
    elif isinstance(value, Mapping):
        fits = len(value) <= MAX_LABELS and all(
            len(key) <= MAX_TEXT and len(text) <= MAX_TEXT for key, text in value.items()
        )
    elif isinstance(value, list):
        fits = len(value) <= MAX_ITEMS and all(
            len(item) == 16 if isinstance(item, bytes) else len(item) <= MAX_TEXT for item in value
        )
    else:
        fits = False
    if not fits:
        raise FrameError(f"{kind}.{name} is out of bounds")
