"""slim-run's end of run.sock; the counterpart is control's, the messages are local.messages.

    <- Offer  [-> Describe  <- Offer]  [-> PrepareNamespace  <- Namespace]  -> Register  <- Ack

OSError means that there is no slimd to talk to (any more); ControlError that it refused. After
the filter is installed nothing here may issue a trapped call: no socket is made or named.
"""

from __future__ import annotations

import errno
import os
import socket
import struct

from slim.broker.errors import ControlError
from slim.broker.run import wire

# Importing typing for this name would cost every command started 4 ms.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from slim.broker.run.options import Options

ANSWER_LIMIT_S = 10

_INT_SIZE = struct.calcsize("i")
_TIMEVAL = struct.Struct("ll")
_MAX_FDS = 8
_DESCRIBED_ARGUMENTS = 32
_DESCRIBED_CHARACTERS = 256


class Session:
    """One connection to slimd that has greeted us; owns its socket. Close it: see `close`."""

    program: bytes
    """The filter to install, as an array of struct sock_filter; empty: `describe` first."""

    def __init__(self, path: str) -> None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        try:
            # Time limits of the kernel's own, because they hold for connect on a full backlog
            # too, where a non-blocking socket fails at once.
            limit = _TIMEVAL.pack(ANSWER_LIMIT_S, 0)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
            sock.connect(path)
            self._sock = sock
            self.program = self._receive_offer()
        except BlockingIOError:
            sock.close()
            raise _no_answer() from None
        except (OSError, ControlError):
            sock.close()
            raise

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket.

        The interpreter would name a forgotten one in a warning, by getsockname: a trapped call,
        which waits for ever when nobody holds the listener but we.
        """
        self._sock.close()

    def describe(self, options: Options) -> None:
        """Say what will be claimed, where the filter depends on it."""
        if not self.program:
            self._send(wire.encode("Describe", options.workload, options.namespace, options.labels))
            self.program = self._receive_offer()

    def prepare_namespace(self, overlay: str, address: str | None) -> tuple[str, int]:
        """Have slimd make a network namespace: its name, and its fd, which the caller owns."""
        self._send(wire.encode("PrepareNamespace", overlay, address))
        received: list[int] = []
        (name,) = self._receive("Namespace", str, fds=received)
        if len(received) != 1:
            _close_all(received)
            raise ConnectionError(errno.EPROTO, f"slimd sent {len(received)} fds for a namespace")
        return str(name), received[0]

    def register(self, options: Options, prepared: str | None, fds: tuple[int, int, int]) -> str:
        """Claim a container and wait until it is supervised; gives its name.

        Borrows the fds: network namespace, pidfd of this process, seccomp listener. `prepared`
        is the name that prepare_namespace gave.
        """
        message = wire.encode(
            "Register",
            options.workload,
            options.namespace,
            options.labels,
            options.overlay,
            "open" if options.fail_open else "closed",
            _described(options.command),
            prepared,
        )
        self._send(message, fds)
        (container,) = self._receive("Ack", str)
        return str(container)

    def _receive_offer(self) -> bytes:
        protocol, program = self._receive("Offer", int, bytes)
        if protocol != wire.PROTOCOL:
            raise ConnectionError(
                errno.EPROTO,
                f"slimd speaks version {protocol!r} of the protocol, slim-run {wire.PROTOCOL}",
            )
        assert isinstance(program, bytes)
        return program

    def _send(self, payload: bytes, fds: tuple[int, ...] = ()) -> None:
        if len(payload) > wire.MAX_DATAGRAM:
            raise ControlError(
                f"{len(payload)} bytes of labels and names are more than slimd takes",
                hint=f"the limit is {wire.MAX_DATAGRAM} bytes",
            )
        ancillary = []
        if fds:
            rights = struct.pack(f"{len(fds)}i", *fds)
            ancillary.append((socket.SOL_SOCKET, socket.SCM_RIGHTS, rights))
        try:
            self._sock.sendmsg([payload], ancillary, socket.MSG_NOSIGNAL)
        except BlockingIOError:
            raise _no_answer() from None

    def _receive(
        self, expected: str, *kinds: type, fds: list[int] | None = None
    ) -> list[int | str | bytes]:
        """The fields of one answer, which must be `expected`; its fds are appended to `fds`."""
        try:
            payload, ancillary, flags, _ = self._sock.recvmsg(
                wire.MAX_DATAGRAM, socket.CMSG_SPACE(_MAX_FDS * _INT_SIZE), socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            raise _no_answer() from None
        received = _received_fds(ancillary)
        try:
            fields = _checked(payload, flags, expected, kinds)
        except (ControlError, OSError):
            _close_all(received)
            raise
        if fds is None:
            _close_all(received)
        else:
            fds.extend(received)
        return fields


def _no_answer() -> TimeoutError:
    return TimeoutError(errno.ETIMEDOUT, f"no answer within {ANSWER_LIMIT_S} s")


def _checked(
    payload: bytes, flags: int, expected: str, kinds: tuple[type, ...]
) -> list[int | str | bytes]:
    if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
        raise ConnectionError(errno.EPROTO, "slimd sent more than a message can hold")
    if not payload:
        raise ConnectionError(errno.ECONNRESET, "slimd closed the connection")
    try:
        tag, fields = wire.decode(payload)
    except ValueError as error:
        raise ConnectionError(errno.EPROTO, f"slimd sent {error}") from None
    if tag == "Refuse" and [type(field) for field in fields] == [str, str]:
        message, hint = fields
        raise ControlError(f"slimd refuses: {message!s}", hint=str(hint))
    if tag != expected or tuple(type(field) for field in fields) != kinds:
        raise ConnectionError(errno.EPROTO, f"slimd sent {tag!r} where {expected} is due")
    return fields


def _described(command: list[str]) -> list[str]:
    """The command as far as it is shown to people: bounded, and UTF-8 whatever it was."""
    return [
        argument[:_DESCRIBED_CHARACTERS].encode("utf-8", "replace").decode()
        for argument in command[:_DESCRIBED_ARGUMENTS]
    ]


def _received_fds(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    fds: list[int] = []
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            count = len(data) // _INT_SIZE
            fds += struct.unpack_from(f"{count}i", data)
    return fds


def _close_all(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)
