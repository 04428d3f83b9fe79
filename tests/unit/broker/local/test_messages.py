"""Messages between the processes of a host: every one survives the wire, no other does."""

from __future__ import annotations

import typing
from typing import Any

import msgspec
import pytest

from slim.broker.local import messages, states

UNIONS: dict[str, Any] = {
    name: getattr(messages, name)
    for name in ("KeeperRequest", "KeeperAnswer", "RunRequest", "RunAnswer", "ToTraps", "ToControl")
}
EVERY: list[tuple[str, type[messages.Message]]] = [
    (name, member) for name, union in UNIONS.items() for member in typing.get_args(union)
]


def example(kind: Any) -> Any:
    """A value of a field's type."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is list:
        return [example(arguments[0])] * 2
    if origin is dict:
        return {example(arguments[0]): example(arguments[1])}
    if origin is tuple:
        return tuple(example(each) for each in arguments)
    if origin is typing.Literal:
        return arguments[0]
    if arguments:
        return example(arguments[0])
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return made(kind)
    examples: dict[Any, Any] = {int: 7, str: "text", bytes: b"\0\xff", bool: True, float: 1.5}
    return examples[kind]


def made(kind: type[msgspec.Struct]) -> Any:
    hints = typing.get_type_hints(kind)
    return kind(**{name: example(hints[name]) for name in kind.__struct_fields__})


@pytest.mark.parametrize(
    ("union", "kind"), EVERY, ids=[f"{union}-{kind.__name__}" for union, kind in EVERY]
)
def test_every_message_survives_the_wire(union: str, kind: type[messages.Message]) -> None:
    message = made(kind)
    raw = msgspec.msgpack.encode(message)
    assert msgspec.msgpack.decode(raw, type=UNIONS[union]) == message
    assert msgspec.msgpack.decode(raw)[0] == kind.__name__


@pytest.mark.parametrize("union", sorted(UNIONS))
def test_a_message_of_another_conversation_is_refused(union: str) -> None:
    members = set(typing.get_args(UNIONS[union]))
    strangers = {kind for _, kind in EVERY} - members
    assert strangers
    for kind in strangers:
        with pytest.raises(msgspec.ValidationError):
            msgspec.msgpack.decode(msgspec.msgpack.encode(made(kind)), type=UNIONS[union])


@pytest.mark.parametrize("kind", [states.TrapSettings, states.WorkloadState, states.ContainerState])
def test_what_the_keeper_keeps_can_be_read_again(kind: type[msgspec.Struct]) -> None:
    kept = made(kind)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(kept), type=kind) == kept


def test_a_mode_that_nobody_knows_is_refused() -> None:
    raw = msgspec.msgpack.decode(msgspec.msgpack.encode(made(messages.Register)))
    raw[raw.index("open")] = "sideways"
    with pytest.raises(msgspec.ValidationError):
        msgspec.msgpack.decode(msgspec.msgpack.encode(raw), type=messages.Register)
