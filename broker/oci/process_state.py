"""ContainerProcessState: what runc and crun send to a seccomp agent, and where it ends.

Source: the OCI runtime specification, config-linux.md, "The Container Process State". The stream
has no framing, and runtimes may leave it open: the end is the JSON object's own.
"""

from __future__ import annotations

import re

import msgspec

from slim.broker.errors import ControlError

MAX_BYTES = 1 << 20
MAX_PID = 1 << 22
"""PID_MAX_LIMIT of linux/threads.h."""
MAX_ID = 1024
SECCOMP_FD = "seccompFd"

_MARKS = re.compile(rb'["\\{}\[\]]')
_WHITESPACE = b" \t\r\n"


class State(msgspec.Struct, frozen=True):
    """The container's state (runtime.md); what Slim has no use for is left out."""

    id: str
    pid: int = 0
    """Of its first process; crun says 0 for an exec."""
    annotations: dict[str, str] = {}


class ContainerProcessState(msgspec.Struct, frozen=True):
    """One process of a container, under a filter that traps."""

    fds: list[str]
    """What the fds of the message are, in their order."""
    state: State
    pid: int = 0
    """Of the process, as the runtime sees it; 0 if it does not know (crun's exec)."""
    metadata: str = ""
    """linux.seccomp.listenerMetadata."""


class ObjectEnd:
    """Finds the end of a JSON object that comes in pieces; looks at each byte once."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = False
        self._is_escaped = False
        self.is_over = False

    def feed(self, piece: bytes) -> None:
        """The next piece; ControlError if it goes on after the end with more than white space."""
        position = 0
        while position < len(piece):
            if self.is_over:
                if piece[position:].strip(_WHITESPACE):
                    raise ControlError("more than one JSON object was sent")
                return
            if self._is_escaped:
                self._is_escaped = False
                position += 1
                continue
            mark = _MARKS.search(piece, position)
            if mark is None:
                return
            position = mark.end()
            self._take(mark.group())

    def _take(self, mark: bytes) -> None:
        if self._in_string:
            if mark == b"\\":
                self._is_escaped = True
            elif mark == b'"':
                self._in_string = False
        elif mark == b'"':
            self._in_string = True
        elif mark in b"{[":
            self._depth += 1
        elif mark in b"}]":
            self._depth -= 1
            self.is_over = self._depth <= 0


def parse(raw: bytes, fd_count: int) -> tuple[ContainerProcessState, int]:
    """The message, and which of its fds is the seccomp listener; ControlError if it is none."""
    try:
        sent = msgspec.json.decode(raw, type=ContainerProcessState)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ControlError(
            f"what it sent is no ContainerProcessState: {error}",
            hint="the runtime must implement linux.seccomp.listenerPath of OCI 1.0.3",
        ) from None
    if len(sent.fds) != fd_count:
        raise ControlError(f"it names {len(sent.fds)} fds and sent {fd_count}")
    if sent.fds.count(SECCOMP_FD) != 1:
        raise ControlError(f"not one but {sent.fds.count(SECCOMP_FD)} of its fds is {SECCOMP_FD}")
    if not sent.state.id or len(sent.state.id) > MAX_ID or not sent.state.id.isprintable():
        raise ControlError("the container's id is empty, too long or not printable")
    for pid in (sent.pid, sent.state.pid):
        if not 0 <= pid <= MAX_PID:
            raise ControlError(f"{pid} is no process id")
    return sent, sent.fds.index(SECCOMP_FD)
