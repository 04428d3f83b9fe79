"""Where a runtime's message ends, and what is taken for one."""

from __future__ import annotations

import json
from typing import Any

import pytest

from slim.broker.errors import ControlError
from slim.broker.oci.process_state import ObjectEnd, parse

RUNC: dict[str, Any] = {
    "ociVersion": "1.0.2-dev",
    "fds": ["seccompFd"],
    "pid": 22221,
    "metadata": '{"x":1}',
    "state": {
        "ociVersion": "1.0.2-dev",
        "id": "web",
        "status": "creating",
        "pid": 22221,
        "bundle": "/bundle",
        "annotations": {'quote\\"': "}{][", "slim.label.app": "web"},
    },
}


def encode(**changes: Any) -> bytes:
    return json.dumps(RUNC | changes, indent=4).encode()


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100, 10_000])
def test_the_end_is_found_however_the_message_is_cut(size: int) -> None:
    raw, end = encode(), ObjectEnd()
    for at in range(0, len(raw), size):
        assert not end.is_over
        end.feed(raw[at : at + size])
    assert end.is_over


def test_white_space_may_follow_and_nothing_else() -> None:
    end = ObjectEnd()
    end.feed(encode() + b"\n\n")
    assert end.is_over
    end.feed(b" \r\n")
    with pytest.raises(ControlError, match="more than one"):
        end.feed(b"{")
    with pytest.raises(ControlError, match="more than one"):
        ObjectEnd().feed(encode() + b" {}")


@pytest.mark.parametrize("raw", [b"}", b"]", b'"}{" }', b"\\\\ }"])
def test_garbage_ends_too_and_is_left_to_the_parser(raw: bytes) -> None:
    end = ObjectEnd()
    end.feed(raw)
    assert end.is_over
    with pytest.raises(ControlError, match="no ContainerProcessState"):
        parse(raw, 1)


def test_what_runc_sends_is_understood() -> None:
    sent, index = parse(encode(), 1)
    assert (sent.pid, sent.state.id, sent.state.pid, index) == (22221, "web", 22221, 0)
    assert sent.state.annotations["slim.label.app"] == "web"


def test_the_listener_is_found_among_other_fds() -> None:
    _, index = parse(encode(fds=["pidfd", "seccompFd", "other"]), 3)
    assert index == 1


def test_crun_gives_no_process_id_for_an_exec() -> None:
    sent, _ = parse(encode(pid=0, state={"id": "web", "pid": 0}), 1)
    assert (sent.pid, sent.state.pid, sent.state.annotations) == (0, 0, {})


@pytest.mark.parametrize(
    ("changes", "fds", "why"),
    [
        ({}, 0, "names 1 fds and sent 0"),
        ({}, 2, "names 1 fds and sent 2"),
        ({"fds": ["other"]}, 1, "not one but 0"),
        ({"fds": ["seccompFd"] * 2}, 2, "not one but 2"),
        ({"pid": -1}, 1, "-1 is no process id"),
        ({"pid": 1 << 40}, 1, "is no process id"),
        ({"state": {"id": "web", "pid": -7}}, 1, "-7 is no process id"),
        ({"pid": "1"}, 1, "no ContainerProcessState"),
        ({"pid": 1.5}, 1, "no ContainerProcessState"),
        ({"state": {"pid": 1}}, 1, "no ContainerProcessState"),
        ({"state": {"id": ""}}, 1, "id is empty"),
        ({"state": {"id": "a\nb"}}, 1, "not printable"),
        ({"state": {"id": "x" * 1025}}, 1, "too long"),
        ({"state": {"id": "web", "annotations": {"a": 1}}}, 1, "no ContainerProcessState"),
        ({"fds": None}, 1, "no ContainerProcessState"),
    ],
)
def test_everything_else_is_refused(changes: dict[str, Any], fds: int, why: str) -> None:
    with pytest.raises(ControlError, match=why):
        parse(encode(**changes), fds)


def test_text_that_is_not_utf8_is_refused() -> None:
    with pytest.raises(ControlError, match="no ContainerProcessState"):
        parse(encode().replace(b"web", b"\xff\xfe\xfd"), 1)


def test_nesting_without_end_is_refused() -> None:
    deep = b'{"x": ' + b"[" * 200_000 + b"]" * 200_000 + b"}"
    end = ObjectEnd()
    end.feed(deep)
    assert end.is_over
    with pytest.raises(ControlError, match="no ContainerProcessState"):
        parse(deep, 1)
