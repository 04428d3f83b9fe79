"""Simple servers and clients, and what they see of each other.

A greeting server sends every client one line of JSON, `{"peer": [...], "accepted": [...],
"name": [...]}`: what getpeername, accept and getsockname say; then it echoes until the end.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
from typing import Any

from support.probes.reporting import report

Name = list[Any]

SERVER_LIMIT_S = 600
SO_NETNS_COOKIE = 71


def family_of(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def endpoint(name: Name | tuple[Any, ...]) -> str:
    """address:port or [address]:port, as slimd writes it; IPv4-mapped addresses as IPv4."""
    host = str(name[0]).removeprefix("::ffff:") if "." in str(name[0]) else str(name[0])
    return f"[{host}]:{name[1]}" if ":" in host else f"{host}:{name[1]}"


def listen(address: str, port: int, *, backlog: int = 128) -> socket.socket:
    sock = socket.socket(family_of(address), socket.SOCK_STREAM)
    listen_on(sock, address, port, backlog=backlog)
    return sock


def listen_on(sock: socket.socket, address: str, port: int, *, backlog: int = 128) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((address, port))
    sock.listen(backlog)


def greet_server(address: str, port: int) -> None:
    """Serve for ever; reports the listener's own name when it listens."""
    # As long as the tests of a module may last on a busy machine.
    signal.alarm(SERVER_LIMIT_S)
    listener = listen(address, port)
    report(endpoint(listener.getsockname()))
    greet(listener)


def greet(listener: socket.socket) -> None:
    """Accept for ever, a thread for each connection."""
    while True:
        sock, accepted = listener.accept()
        threading.Thread(target=greet_one, args=(sock, accepted), daemon=True).start()


def greet_one(sock: socket.socket, accepted: tuple[Any, ...]) -> None:
    with sock:
        try:
            greeting = {
                "peer": endpoint(sock.getpeername()),
                "accepted": endpoint(accepted),
                "name": endpoint(sock.getsockname()),
                "pid": os.getpid(),
            }
            sock.sendall(json.dumps(greeting).encode() + b"\n")
            while data := sock.recv(1 << 16):
                sock.sendall(data)
        except (ConnectionError, OSError):
            return


def path_of(sock: socket.socket) -> str:
    """Whose socket it is: the host's, or one of the program's own network namespace."""
    with socket.socket() as fresh:
        own = fresh.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8)
    return "own" if sock.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8) == own else "host"


def greeted(sock: socket.socket) -> dict[str, Any]:
    """Read the greeting; adds what this end says of itself."""
    line = b""
    while not line.endswith(b"\n"):
        byte = sock.recv(1)
        assert byte, f"the server closed the connection after {line!r}"
        line += byte
    greeting: dict[str, Any] = json.loads(line)
    greeting["client_name"] = endpoint(sock.getsockname())
    greeting["client_peer"] = endpoint(sock.getpeername())
    greeting["path"] = path_of(sock)
    return greeting


def visit(address: str, port: int, payload_bytes: int = 1000) -> dict[str, Any]:
    """Connect, read the greeting, check an echo."""
    with socket.create_connection((address, port), timeout=10) as sock:
        greeting = greeted(sock)
        check_echo(sock, payload_bytes)
    return greeting


def check_echo(sock: socket.socket, payload_bytes: int) -> None:
    payload = os.urandom(payload_bytes)
    sender = threading.Thread(target=sock.sendall, args=(payload,))
    sender.start()
    received = bytearray()
    while len(received) < payload_bytes:
        chunk = sock.recv(payload_bytes - len(received))
        assert chunk, f"the echo ended after {len(received)} of {payload_bytes} bytes"
        received += chunk
    sender.join()
    assert bytes(received) == payload


def visit_plainly(address: str, port: int) -> str:
    """How a visit ended, when the server may not be one that serves."""
    try:
        with socket.create_connection((address, port), timeout=10) as sock:
            if not sock.recv(1):
                return "closed"
            while sock.recv(1) != b"\n":
                continue
            check_echo(sock, 100)
    except ConnectionResetError:
        return "reset"
    return "echoed"


def try_visit(address: str, port: int) -> dict[str, Any]:
    """As visit, but the errno of a failure is a result."""
    try:
        return visit(address, port)
    except OSError as error:
        return {"errno": error.errno}


def try_fast_open(address: str, port: int) -> dict[str, Any]:
    """Connect by sending the first byte (MSG_FASTOPEN of tcp(7)); the greeting, or the errno."""
    with socket.socket(family_of(address), socket.SOCK_STREAM) as sock:
        try:
            sock.sendto(b"x", socket.MSG_FASTOPEN, (address, port))
        except OSError as error:
            return {"errno": error.errno}
        return greeted(sock)


def stay(address: str, port: int, payload_bytes: int = 1000) -> None:
    """Connect, report the greeting, and stay connected.

    Each line on standard input is one echo, after which its length is reported, then the names.
    """
    with socket.create_connection((address, port), timeout=10) as sock:
        report(greeted(sock))
        while True:
            try:
                input()
            except EOFError:
                return
            check_echo(sock, payload_bytes)
            report(payload_bytes)
            report(
                {
                    "client_name": endpoint(sock.getsockname()),
                    "client_peer": endpoint(sock.getpeername()),
                }
            )
