"""msgpack for the few messages between slim-run and control, without msgspec.

Importing msgspec and local.messages takes about 50 ms, more than all else that slim-run does, and
every command started would pay it. local.messages stays the definition; a test reads with each
codec what the other one wrote. Source: the msgpack specification (spec.md).
"""

from __future__ import annotations

PROTOCOL = 5
"""The same number as local.messages.PROTOCOL."""

MAX_DATAGRAM = 64 * 1024
"""The same number as local.messages.MAX_DATAGRAM."""

# First byte -> (what follows, bytes of its length); an integer's own bytes are its "length".
_SIZED = {
    0xC4: ("bytes", 1),
    0xC5: ("bytes", 2),
    0xC6: ("bytes", 4),
    0xCC: ("integer", 1),
    0xCD: ("integer", 2),
    0xCE: ("integer", 4),
    0xCF: ("integer", 8),
    0xD9: ("text", 1),
    0xDA: ("text", 2),
    0xDB: ("text", 4),
}


def encode(tag: str, *fields: str | list[str] | dict[str, str] | None) -> bytes:
    """One message: an array of the tag and the fields."""
    return _array_header(1 + len(fields)) + b"".join(map(_encode, (tag, *fields)))


def decode(raw: bytes) -> tuple[str, list[int | str | bytes]]:
    """The tag and the fields of one message; ValueError for anything else.

    Answers to slim-run have no nested values, so none are read.
    """
    if not raw:
        raise ValueError("empty message")
    if 0x90 <= raw[0] <= 0x9F:
        count, position = raw[0] & 0x0F, 1
    else:
        raise ValueError("not a message")
    fields: list[int | str | bytes] = []
    for _ in range(count):
        field, position = _decode(raw, position)
        fields.append(field)
    if position != len(raw):
        raise ValueError("more than one message")
    if not fields or not isinstance(fields[0], str):
        raise ValueError("a message without a tag")
    return fields[0], fields[1:]


def _encode(value: str | list[str] | dict[str, str] | None) -> bytes:
    if value is None:
        return b"\xc0"
    if isinstance(value, str):
        return _encode_text(value)
    if isinstance(value, list):
        return _array_header(len(value)) + b"".join(map(_encode_text, value))
    pairs = [_encode_text(key) + _encode_text(text) for key, text in value.items()]
    return b"\xde" + len(value).to_bytes(2, "big") + b"".join(pairs)


def _encode_text(text: str) -> bytes:
    raw = text.encode()
    return b"\xdb" + len(raw).to_bytes(4, "big") + raw


def _array_header(count: int) -> bytes:
    return b"\xdc" + count.to_bytes(2, "big")


def _decode(raw: bytes, position: int) -> tuple[int | str | bytes, int]:
    lead = _take(raw, position, 1)[0]
    position += 1
    if lead < 0x80:
        return lead, position
    if 0xA0 <= lead <= 0xBF:
        kind, size = "text", lead & 0x1F
    elif lead in _SIZED:
        kind, width = _SIZED[lead]
        size = int.from_bytes(_take(raw, position, width), "big")
        position += width
        if kind == "integer":
            return size, position
    else:
        raise ValueError(f"a field of a kind that no answer has (0x{lead:02x})")
    content = _take(raw, position, size)
    # UnicodeDecodeError is a ValueError.
    return content.decode() if kind == "text" else content, position + size


def _take(raw: bytes, position: int, size: int) -> bytes:
    part = raw[position : position + size]
    if len(part) != size:
        raise ValueError("a message that ends too early")
    return part
