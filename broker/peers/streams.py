"""TLS streams under the links: listening, accepting, dialling, and why one of these failed."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import socket
import ssl
from collections import Counter
from typing import TYPE_CHECKING, TypeAlias

from slim.broker.endpoints import Address, Endpoint, unmapped

if TYPE_CHECKING:
    from collections.abc import Iterator

HANDSHAKE_LIMIT_S = 5.0
BACKLOG = 256
MAX_STRANGERS = 256
MAX_STRANGERS_PER_ADDRESS = 16

Stream: TypeAlias = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Strangers:
    """Counts connections whose other end has not yet said, and proved, who it is."""

    def __init__(self) -> None:
        self._at: Counter[Address] = Counter()

    def is_full(self, address: Address) -> bool:
        return self._at.total() >= MAX_STRANGERS or self._at[address] >= MAX_STRANGERS_PER_ADDRESS

    @contextlib.contextmanager
    def counted(self, address: Address) -> Iterator[None]:
        self._at[address] += 1
        try:
            yield
        finally:
            self._at[address] -= 1
            if not self._at[address]:
                del self._at[address]


def listen(endpoint: Endpoint) -> socket.socket:
    """A listening socket, which does not block; OSError as from bind(2)."""
    family = socket.AF_INET6 if endpoint.address.version == 6 else socket.AF_INET
    listener = socket.create_server(
        (str(endpoint.address), endpoint.port), family=family, backlog=BACKLOG
    )
    listener.setblocking(False)
    return listener


async def accept(listener: socket.socket) -> tuple[socket.socket, Address]:
    """The next connection and the address of its other end; OSError as from accept(2)."""
    sock, name = await asyncio.get_running_loop().sock_accept(listener)
    # A link-local address comes with its zone (RFC 4007).
    return sock, unmapped(ipaddress.ip_address(name[0].partition("%")[0]))


async def serve_tls(sock: socket.socket, context: ssl.SSLContext) -> Stream:
    """The server's side of the handshake; takes the socket. OSError."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(loop=loop)
    protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
    transport, _ = await loop.connect_accepted_socket(
        lambda: protocol,
        sock,
        ssl=context,
        ssl_handshake_timeout=HANDSHAKE_LIMIT_S,
        ssl_shutdown_timeout=HANDSHAKE_LIMIT_S,
    )
    return reader, asyncio.StreamWriter(transport, protocol, reader, loop)


async def dial_tls(endpoint: Endpoint, context: ssl.SSLContext) -> Stream:
    """Connect, and the client's side of the handshake; OSError.

    The server judges the client's certificate after this: its refusal is met when reading.
    """
    return await asyncio.open_connection(
        str(endpoint.address),
        endpoint.port,
        ssl=context,
        server_hostname="",
        ssl_handshake_timeout=HANDSHAKE_LIMIT_S,
        ssl_shutdown_timeout=HANDSHAKE_LIMIT_S,
    )


def explain(error: BaseException) -> str:
    """An error of a stream in words for a log line."""
    if isinstance(error, TimeoutError):
        return "timed out"
    if isinstance(error, EOFError):
        return "closed by the peer"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"TLS: the peer's certificate: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        reason = (error.reason or str(error)).replace("_", " ").lower()
        return f"TLS: {reason}"
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    if isinstance(error, ConnectionResetError) and not error.args:
        # So asyncio tells of a handshake that the other end broke off.
        return "refused by the peer, whose log says why"
    return str(error) or type(error).__name__
