"""Connections that policy limits: what is in force on them, and how much gets through."""

from __future__ import annotations

import contextlib
import socket
import struct
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

from support.probes.calls import name_of
from support.probes.peers import listen
from support.probes.reporting import report

if TYPE_CHECKING:
    from collections.abc import Callable

SO_MAX_PACING_RATE = 47
CHUNK = bytes(65536)


def options_of(sock: socket.socket) -> dict[str, Any]:
    """What the program reads of its own socket."""
    congestion = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16)
    (rate,) = struct.unpack("Q", sock.getsockopt(socket.SOL_SOCKET, SO_MAX_PACING_RATE, 8))
    found = {
        "rate": rate,
        "priority": sock.getsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY),
        "tos": sock.getsockopt(socket.IPPROTO_IP, socket.IP_TOS),
        "congestion": congestion.rstrip(b"\0").decode(),
    }
    if sock.family == socket.AF_INET6:
        found["tclass"] = sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS)
    return found


def undo(sock: socket.socket) -> dict[str, Any]:
    """Try to get rid of every limit; the errnos, and what is in force then."""
    asked: dict[str, tuple[int, int, int | bytes]] = {
        "rate": (socket.SOL_SOCKET, SO_MAX_PACING_RATE, struct.pack("Q", (1 << 64) - 1)),
        "rate32": (socket.SOL_SOCKET, SO_MAX_PACING_RATE, struct.pack("I", (1 << 32) - 1)),
        "priority": (socket.SOL_SOCKET, socket.SO_PRIORITY, 5),
        "tos": (socket.IPPROTO_IP, socket.IP_TOS, 0x10),
        "congestion": (socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno"),
    }
    if sock.family == socket.AF_INET6:
        asked["tclass"] = (socket.IPPROTO_IPV6, socket.IPV6_TCLASS, 0x10)
    errors = {}
    for name, (level, option, value) in asked.items():
        try:
            sock.setsockopt(level, option, value)
        except OSError as error:
            errors[name] = name_of(error.errno)
    return {"errors": errors, "options": options_of(sock)}


def sink(address: str, port: int) -> None:
    """Accept connections, report the options of each, read it to its end.

    The first line from the client is answered by as many bytes as it says, sent back.
    """
    listener = listen(address, port)
    report("listening")
    while True:
        sock, _ = listener.accept()
        report(options_of(sock))
        threading.Thread(target=_swallow, args=(sock,), daemon=True).start()


def _swallow(sock: socket.socket) -> None:
    with sock, contextlib.suppress(OSError):
        wanted = int(sock.makefile("rb").readline() or 0)
        while wanted > 0:
            wanted -= sock.send(CHUNK[:wanted])
        while sock.recv(1 << 20):
            pass


def talk(address: str, port: int) -> None:
    """Connect; then each line on standard input is one thing to do, and one report.

    options, undo, "send SECONDS": how much was sent, "receive BYTES": in which time, "end": how
    the connection ends, with how many bytes sent and received meanwhile.
    """
    with socket.create_connection((address, port), timeout=20) as sock:
        report("connected")
        for line in sys.stdin:
            what, *more = line.split()
            report(_DO[what](sock, *more))


def _send(sock: socket.socket, seconds: str) -> dict[str, Any]:
    """Bytes that left the send buffer, by the kernel's count of acknowledged ones."""
    # What was sent before may still wait for its turn.
    sock.settimeout(20)
    sock.sendall(b"0\n")
    start, before = time.monotonic(), _acked(sock)
    sock.settimeout(0.05)
    while (took := time.monotonic() - start) < float(seconds):
        with contextlib.suppress(TimeoutError):
            sock.send(CHUNK)
    return {"bytes": _acked(sock) - before, "seconds": took}


def _receive(sock: socket.socket, size: str) -> dict[str, Any]:
    sock.sendall(f"{size}\n".encode())
    received = len(sock.recv(1 << 20))
    start, first = time.monotonic(), received
    while received < int(size):
        received += len(sock.recv(1 << 20))
    return {"bytes": received - first, "seconds": time.monotonic() - start}


def _end(sock: socket.socket, sends: str) -> dict[str, Any]:
    """Wait for the end, sending all the time or silent."""
    sock.settimeout(10)
    end = "closed"
    try:
        sock.sendall(b"0\n")
        while sends == "sending":
            sock.sendall(CHUNK)
        sock.recv(1)
    except OSError as error:
        end = name_of(error.errno)
    return {"end": end, "bytes": _acked(sock)}


def _acked(sock: socket.socket) -> int:
    """tcpi_bytes_acked of struct tcp_info (linux/tcp.h)."""
    raw = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 136)
    (acked,) = struct.unpack_from("Q", raw, 120)
    return int(acked)


_DO: dict[str, Callable[..., Any]] = {
    "options": options_of,
    "undo": undo,
    "send": _send,
    "receive": _receive,
    "end": _end,
}
