"""SEQPACKET sockets that carry local.messages and fds; the only place that (de)serialises them.

A datagram is one message, so there is no framing; MSG_CMSG_CLOEXEC keeps received fds out of
children; a truncated datagram or control message is an error, never a shorter message.
"""

from __future__ import annotations

import array
import errno
import os
import socket
import struct
from pathlib import Path
from typing import Any, Generic, TypeVar

import msgspec

from slim.broker.local.messages import MAX_DATAGRAM

MAX_FDS = 8
BURST_BYTES = 16 << 20
"""What may lie unread on a link of slimd's own processes: news of 10,000 listeners at once, the
range of host ports, takes 8 MB, as the kernel charges a KiB or so for the smallest datagram."""
SO_SNDBUFFORCE = 32
_INT_SIZE = array.array("i").itemsize
_UCRED = struct.Struct("3i")
_encoder = msgspec.msgpack.Encoder()

T = TypeVar("T")


class ProtocolViolation(ConnectionError):
    """The peer sent what no version of Slim sends; the connection is of no further use."""


class FdsLost(ProtocolViolation):
    """A whole message came, but its fds did not all fit: this process has no fd left (recvmsg(2),
    MSG_CTRUNC), or there were too many. None is kept; who can answer `message` may go on."""

    def __init__(self, message: Any) -> None:
        super().__init__("truncated control message: no fd left?")
        self.message = message


class Channel(Generic[T]):
    """One end of a SEQPACKET connection that receives messages of type `T`. Owns its socket."""

    def __init__(self, sock: socket.socket, decoder: msgspec.msgpack.Decoder[T]) -> None:
        self.sock = sock
        self._decoder = decoder

    def fileno(self) -> int:
        return self.sock.fileno()

    def close(self) -> None:
        self.sock.close()

    def send(self, message: Any, fds: tuple[int, ...] = ()) -> None:
        """Send one message; borrows the fds. OSError as from sendmsg(2)."""
        payload = _encoder.encode(message)
        if len(payload) > MAX_DATAGRAM:
            raise OSError(errno.EMSGSIZE, f"{type(message).__name__} of {len(payload)} bytes")
        ancillary = []
        if fds:
            ancillary.append((socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds)))
        self.sock.sendmsg([payload], ancillary, socket.MSG_NOSIGNAL)

    def receive(self) -> tuple[T, list[int]]:
        """Receive one message; the caller owns the fds.

        Raises EOFError when the peer is gone, ProtocolViolation on anything malformed (FdsLost when
        only its fds did not arrive), and BlockingIOError on a non-blocking socket with nothing to
        read.
        """
        payload, ancillary, flags, _ = self.sock.recvmsg(
            MAX_DATAGRAM, socket.CMSG_SPACE(MAX_FDS * _INT_SIZE), socket.MSG_CMSG_CLOEXEC
        )
        fds = _received_fds(ancillary)
        try:
            if flags & socket.MSG_TRUNC:
                raise ProtocolViolation("truncated datagram")
            if not payload:
                raise EOFError("peer closed the connection")
            message = self._decoder.decode(payload)
            if flags & socket.MSG_CTRUNC:
                raise FdsLost(message)
        except (msgspec.DecodeError, ProtocolViolation, EOFError) as error:
            for fd in fds:
                os.close(fd)
            if isinstance(error, msgspec.DecodeError):
                raise ProtocolViolation(f"malformed message: {error}") from None
            raise
        return message, fds


def _received_fds(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    fds = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % _INT_SIZE])
    return list(fds)


def listen(
    path: str,
    *,
    mode: int,
    kind: socket.SocketKind = socket.SOCK_SEQPACKET,
    backlog: int = 64,
) -> socket.socket:
    """A listening unix socket at `path`, which replaces whatever was there."""
    sock = socket.socket(socket.AF_UNIX, kind | socket.SOCK_CLOEXEC)
    try:
        Path(path).unlink(missing_ok=True)
        # The socket exists with the right mode from its first moment.
        previous = os.umask(0o777 & ~mode)
        try:
            sock.bind(path)
        finally:
            os.umask(previous)
        sock.listen(backlog)
    except OSError:
        sock.close()
        raise
    return sock


def connect(path: str) -> socket.socket:
    """A connected SEQPACKET socket with room for bursts; OSError as from connect(2)."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    try:
        sock.connect(path)
        _make_room(sock)
    except OSError:
        sock.close()
        raise
    return sock


def _make_room(sock: socket.socket) -> None:
    """Let a burst be sent to a peer that is busy: a link that would block is given up."""
    try:
        # socket(7): beyond net.core.wmem_max with CAP_NET_ADMIN. The kernel doubles the number.
        sock.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, BURST_BYTES // 2)
    except PermissionError:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BURST_BYTES // 2)


def accept_trusted(listener: socket.socket) -> socket.socket | None:
    """Accept from root or from our own user; None when there is nobody, or somebody else."""
    try:
        sock, _ = listener.accept()
    except OSError:
        return None
    _, uid, _ = peer_credentials(sock)
    if uid in (0, os.geteuid()):
        _make_room(sock)
        return sock
    sock.close()
    return None


def peer_credentials(sock: socket.socket) -> tuple[int, int, int]:
    """(pid, uid, gid) of the process that connected, as the kernel noted it (SO_PEERCRED)."""
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    pid, uid, gid = _UCRED.unpack(raw)
    return pid, uid, gid
