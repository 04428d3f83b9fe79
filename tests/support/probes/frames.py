"""A slimd of a certified host that does not keep to the protocol; runs on a host."""

from __future__ import annotations

import random
import socket
import ssl
from ipaddress import ip_address
from pathlib import Path

from slim.broker.endpoints import packed16
from slim.broker.peers import frames, messages, pki
from support.probes.reporting import report

LIMIT_S = 15.0
ROUNDS = 20


def misbehave(host: str, directory: str, own: str, address: str, port: int) -> None:
    """Each violation on a channel of its own; reports how many the other side ended."""
    where = Path(directory)
    files = (where / f"{host}.crt", where / f"{host}.key", where / "authority.crt")
    context = pki.load_host_credentials(*files).client_context()
    hello = frames.encode(messages.Hello(messages.PROTOCOL, host, [packed16(ip_address(own))], []))
    violations = [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\xff\xff\xff\xff",
        b"\0\0\0\0",
        _frame(b"\x91" * 60_000),
        _frame(b"\xdf\xff\xff\xff\xff"),
        _frame(b"\xc1"),
        hello,
    ]
    numbers = random.Random(1)
    for _ in range(ROUNDS):
        damaged = bytearray(hello)
        damaged[numbers.randrange(4, len(damaged))] ^= 1 << numbers.randrange(8)
        violations.append(bytes(damaged))
        violations.append(_frame(numbers.randbytes(200)))
    ended = 0
    for violation in violations:
        with socket.create_connection((address, port), timeout=LIMIT_S) as plain:
            with context.wrap_socket(plain) as stream:
                stream.sendall(hello + violation)
                ended += _ends(stream)
    report({"violations": len(violations), "ended": ended})


def babble(address: str, port: int, times: int) -> None:
    """Bytes that are no TLS, and connections that end at once."""
    numbers = random.Random(2)
    ended = 0
    for _ in range(times):
        with socket.create_connection((address, port), timeout=LIMIT_S) as stream:
            stream.sendall(numbers.randbytes(numbers.randrange(1, 2000)))
            stream.shutdown(socket.SHUT_WR)
            ended += _ends(stream)
    report({"ended": ended})


def _frame(payload: bytes) -> bytes:
    return len(payload).to_bytes(4, "big") + payload


def _ends(stream: socket.socket) -> bool:
    """Whether the other side ends the connection; what it says before is nothing to us."""
    try:
        while stream.recv(4096):
            pass
    except TimeoutError:
        return False
    except (ConnectionResetError, ssl.SSLError):
        return True
    return True
