"""The admin socket: `admin.sock`, root only. One request, one answer, per frame.

A frame is a 4-byte big-endian length and msgpack (admin.messages). A client that is slow, large
or malformed loses its connection; the others never wait for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import struct
from typing import TYPE_CHECKING, Protocol

import msgspec

from slim.broker.admin import messages
from slim.broker.errors import SlimError
from slim.broker.local.seqpacket import peer_credentials

if TYPE_CHECKING:
    from pathlib import Path

log = logging.getLogger(__name__)

MAX_CLIENTS = 64
IDLE_LIMIT_S = 10.0

_LENGTH = struct.Struct("!I")
_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[messages.AdminRequest] = msgspec.msgpack.Decoder(
    messages.AdminRequest
)


class AdminProvider(Protocol):
    """Who knows the answers: control."""

    async def status(self) -> messages.Status: ...
    async def containers(self) -> messages.Containers: ...
    async def connections(self) -> messages.Connections: ...
    async def changes(self, after: int) -> messages.Changes: ...
    def plugins(self) -> messages.Plugins: ...
    async def events(self, asked: messages.GetEvents) -> messages.Events: ...
    async def reload(self) -> messages.Reloaded: ...
    async def cut(self, cookies: list[int]) -> messages.CutDone: ...
    async def explain(self, asked: messages.Explain) -> messages.Explanation: ...
    def stop_from_admin(self, release: bool) -> messages.Stopping: ...


class AdminServer:
    """Owns the listening socket and its clients."""

    def __init__(self, provider: AdminProvider) -> None:
        self._provider = provider
        self._server: asyncio.Server | None = None
        self._path: Path | None = None
        self._identity = (0, 0)
        self._clients: set[asyncio.StreamWriter] = set()

    async def start(self, path: Path) -> None:
        """Listen at the path, which is replaced; mode 0600."""
        sock = _bind(path)
        self._server = await asyncio.start_unix_server(self._serve, sock=sock)
        self._path = path
        self._identity = _identity(path)

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for writer in [*self._clients]:
            writer.transport.abort()
        # Unless a successor has put its own socket there already.
        if self._path is not None and _identity(self._path) == self._identity:
            self._path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        sock = writer.get_extra_info("socket")
        pid, uid, _ = peer_credentials(sock)
        # The socket's mode says the same, but a descriptor may have been handed on.
        if uid not in (0, os.geteuid()):
            log.warning("admin client refused: pid %d of user %d", pid, uid)
            writer.close()
            return
        if len(self._clients) >= MAX_CLIENTS:
            log.warning("admin client refused: pid %d is one too many (%d)", pid, MAX_CLIENTS + 1)
            writer.close()
            return
        self._clients.add(writer)
        try:
            while True:
                request = await asyncio.wait_for(_read(reader), IDLE_LIMIT_S)
                writer.write(_frame(await self._answer(request)))
                await asyncio.wait_for(writer.drain(), IDLE_LIMIT_S)
        except (EOFError, TimeoutError, asyncio.CancelledError):
            return
        except (OSError, msgspec.DecodeError, ValueError) as error:
            log.warning("admin client dropped: pid %d: %s", pid, error)
        finally:
            self._clients.discard(writer)
            with contextlib.suppress(OSError, RuntimeError):
                writer.close()

    async def _answer(self, request: messages.AdminRequest) -> messages.AdminAnswer:
        if request.protocol != messages.PROTOCOL:
            return messages.Failure(
                f"slimctl speaks protocol {request.protocol}, slimd {messages.PROTOCOL}",
                "use the slimctl that was installed with this slimd",
            )
        try:
            match request:
                case messages.GetStatus():
                    return await self._provider.status()
                case messages.GetContainers():
                    return await self._provider.containers()
                case messages.GetConnections():
                    return await self._provider.connections()
                case messages.GetChanges():
                    return await self._provider.changes(request.after)
                case messages.GetPlugins():
                    return self._provider.plugins()
                case messages.GetEvents():
                    return await self._provider.events(request)
                case messages.Reload():
                    return await self._provider.reload()
                case messages.Cut():
                    return await self._provider.cut(request.cookies)
                case messages.Explain():
                    return await self._provider.explain(request)
                case messages.Stop():
                    return self._provider.stop_from_admin(request.release)
        except SlimError as error:
            return messages.Failure(error.message, error.hint)
        except OSError as error:
            # Containers and namespaces may go while they are being looked at.
            log.warning("admin request %s failed: %s", type(request).__name__, error)
            return messages.Failure(
                error.strerror or str(error), "try again; slimd's log has it too"
            )


def _identity(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError:
        return (0, 0)
    return found.st_dev, found.st_ino


def _bind(path: Path) -> socket.socket:
    path.unlink(missing_ok=True)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # The socket exists with the right mode from its first moment.
    previous = os.umask(0o177)
    try:
        sock.bind(str(path))
    except OSError:
        sock.close()
        raise
    finally:
        os.umask(previous)
    return sock


async def _read(reader: asyncio.StreamReader) -> messages.AdminRequest:
    """One request; EOFError at the end, ValueError or DecodeError when it is none."""
    try:
        (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
        if not 0 < length <= messages.MAX_REQUEST:
            raise ValueError(f"a request of {length} bytes")
        return _decoder.decode(await reader.readexactly(length))
    except asyncio.IncompleteReadError:
        raise EOFError from None


def _frame(answer: messages.AdminAnswer) -> bytes:
    payload = _encoder.encode(answer)
    if len(payload) > messages.MAX_ANSWER:
        payload = _encoder.encode(
            messages.Failure(
                f"the answer would have {len(payload)} bytes; the limit is {messages.MAX_ANSWER}"
            )
        )
    return _LENGTH.pack(len(payload)) + payload
