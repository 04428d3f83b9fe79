"""Sessions of real protocols that stay open: one exchange for each line of input."""

from __future__ import annotations

import http.client
import socket

from support.probes.peers import endpoint
from support.probes.reporting import report


def http_session(address: str, port: int) -> None:
    """GET /who on one kept-alive connection."""
    connection = http.client.HTTPConnection(address, port, timeout=20)
    connection.connect()
    sock: socket.socket = connection.sock
    while True:
        connection.request("GET", "/who")
        answer = connection.getresponse().read().decode().split()
        # http.client would connect again if the server had closed.
        assert connection.sock is sock
        report(
            {
                "told": endpoint((answer[0], int(answer[1]))),
                "name": endpoint(sock.getsockname()),
                "peer": endpoint(sock.getpeername()),
            }
        )
        input()


def redis_session(address: str, port: int) -> None:
    """CLIENT INFO: what the server knows of us."""
    with socket.create_connection((address, port)) as sock:
        sock.settimeout(20)
        file = sock.makefile("rwb")
        while True:
            file.write(b"CLIENT INFO\r\n")
            file.flush()
            length = int(file.readline()[1:])
            info = dict(field.split("=", 1) for field in file.read(length).decode().split())
            file.readline()
            report(
                {
                    "told": info["addr"],
                    "name": endpoint(sock.getsockname()),
                    "peer": endpoint(sock.getpeername()),
                }
            )
            input()
