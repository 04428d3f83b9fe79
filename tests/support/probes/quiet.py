"""Programs that put nothing of their own addresses on the wire."""

from __future__ import annotations

import socket

from support.probes.peers import family_of, listen
from support.probes.reporting import report


def echo_server(address: str, port: int) -> None:
    """Send back what comes, connection after connection; reports when it listens."""
    with listen(address, port) as listener:
        report("listening")
        while True:
            sock, _ = listener.accept()
            with sock:
                sock.sendall(sock.recv(64))


def echo(address: str, port: int, times: int) -> int:
    """That many connections, one after the other; gives how many echoed."""
    good = 0
    for _ in range(times):
        with socket.socket(family_of(address)) as sock:
            sock.connect((address, port))
            sock.sendall(b"a quiet payload")
            good += sock.recv(64) == b"a quiet payload"
    return good
