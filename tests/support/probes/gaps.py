"""What a program can do while its slimd is away: one try of everything per line of input."""

from __future__ import annotations

import contextlib
import socket
import tempfile
from typing import TYPE_CHECKING, Any

from support.probes.calls import name_of
from support.probes.peers import endpoint, visit
from support.probes.reporting import report

if TYPE_CHECKING:
    from collections.abc import Callable


def try_everything(address: str, port: int) -> None:
    """Report "ready", then for each line of input what became of each try."""
    report("ready")
    listener: list[socket.socket] = []
    while True:
        try:
            input()
        except EOFError:
            return
        report(
            {
                "connect": _outcome(lambda: visit(address, port, 1000)["client_name"]),
                "listen": _outcome(_listen),
                "listen again": _outcome(lambda: _listen_again(listener, port)),
                "loopback": _outcome(_loopback),
                "udp": _outcome(lambda: _udp(address)),
                "unix": _outcome(_unix),
            }
        )


def _outcome(attempt: Callable[[], Any]) -> Any:
    """What it gave, or the name of its errno."""
    try:
        return attempt()
    except OSError as error:
        return name_of(error.errno)


def _listen() -> str:
    with socket.socket() as sock:
        sock.bind(("0.0.0.0", 0))
        sock.listen()
        return endpoint(sock.getsockname()).partition(":")[0]


def _listen_again(listener: list[socket.socket], port: int) -> str:
    """Close the listener of the last time, and listen at the same port without SO_REUSEADDR."""
    while listener:
        listener.pop().close()
    sock = socket.socket()
    listener.append(sock)
    sock.bind(("0.0.0.0", port))
    sock.listen()
    return endpoint(sock.getsockname()).partition(":")[0]


def _loopback() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        with socket.create_connection(listener.getsockname(), timeout=5) as sock:
            accepted, peer = listener.accept()
            with accepted:
                assert peer == sock.getsockname()
                return "echoed" if _echoes(sock, accepted) else "wrong"


def _udp(address: str) -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect((address, 9))
        address, _ = sock.getpeername()
        return str(address)


def _unix() -> str:
    with tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as stack:
        path = f"{directory}/socket"
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(path)
        listener.listen()
        sock = stack.enter_context(socket.socket(socket.AF_UNIX))
        sock.connect(path)
        accepted = stack.enter_context(listener.accept()[0])
        return "echoed" if _echoes(sock, accepted) else "wrong"


def _echoes(sock: socket.socket, other: socket.socket) -> bool:
    sock.sendall(b"there")
    other.sendall(other.recv(5))
    return sock.recv(5) == b"there"
