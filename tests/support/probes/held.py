"""A threaded program with calls that wait, for tests that stop, freeze and trace it meanwhile."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from support.probes.calls import name_of, stream
from support.probes.peers import greet_one, greeted, listen
from support.probes.reporting import report

if TYPE_CHECKING:
    import socket

THREADS = 4


def accept_in_threads(address: str, port: int) -> None:
    """Every thread of four waits in accept on the same listener, for ever, and greets."""
    listener = listen(address, port)
    started = threading.Barrier(THREADS + 1)

    def serve() -> None:
        started.wait()
        while True:
            try:
                sock, accepted = listener.accept()
            except OSError as error:
                report({"failed": name_of(error.errno)})
                return
            greet_one(sock, accepted)

    for _ in range(THREADS):
        threading.Thread(target=serve, daemon=True).start()
    started.wait()
    report("accepting")
    threading.Event().wait()


def connect_in_threads(address: str, port: int) -> list[Any]:
    """Four threads connect at once, announced before; what each was greeted with, or its errno."""
    seen: list[Any] = []

    def visit(sock: socket.socket) -> None:
        with sock:
            try:
                sock.connect((address, port))
                seen.append(greeted(sock))
            except OSError as error:
                seen.append(name_of(error.errno))

    threads = [threading.Thread(target=visit, args=(stream(address),)) for _ in range(THREADS)]
    report("connecting")
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return seen
