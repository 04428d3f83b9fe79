"""A workload that serves some ports and tries others: who reaches whom, as policy has it now."""

from __future__ import annotations

import json
import signal
import socket
import threading

from support.probes.calls import name_of
from support.probes.peers import SERVER_LIMIT_S
from support.probes.reporting import report

TRY_LIMIT_S = 10
GREETING = b"here\n"


def serve_and_try(address: str, ports: str) -> None:
    """Report "listening", then for each line of input, a list of [address, port], each outcome."""
    signal.alarm(SERVER_LIMIT_S)
    for port in json.loads(ports):
        listener = socket.create_server((address, port), backlog=64)
        threading.Thread(target=_serve, args=(listener,), daemon=True).start()
    report("listening")
    while True:
        try:
            targets = json.loads(input())
        except EOFError:
            return
        report([_try(host, port) for host, port in targets])


def _serve(listener: socket.socket) -> None:
    while True:
        sock, _ = listener.accept()
        with sock:
            sock.sendall(GREETING)


def _try(host: str, port: int) -> str:
    """`allowed`, or the name of the errno."""
    try:
        with socket.create_connection((host, port), timeout=TRY_LIMIT_S) as sock:
            return "allowed" if sock.recv(len(GREETING)) == GREETING else "closed"
    except OSError as error:
        return name_of(error.errno) if error.errno else type(error).__name__
