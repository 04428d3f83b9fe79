"""Connections that policy may cut, and clients that never stop trying."""

from __future__ import annotations

import errno
import os
import select
import socket
import sys
import time

from support.probes.calls import name_of
from support.probes.peers import family_of, greeted, listen
from support.probes.reporting import report


def report_ready() -> None:
    """Be there, and do nothing, until standard input ends."""
    report("ready")
    sys.stdin.read()


def wait_for_end(address: str, port: int) -> None:
    """Connect, report the greeting, then how the connection ended, without a byte sent."""
    with socket.create_connection((address, port), timeout=10) as sock:
        report(greeted(sock))
        sock.settimeout(25)
        report(_end_of(sock))


def serve_until_end(address: str, port: int) -> None:
    """Accept one connection after the other; report how each ended."""
    listener = listen(address, port)
    report("listening")
    while True:
        sock, _ = listener.accept()
        with sock:
            sock.sendall(b'{"pid": %d}\n' % os.getpid())
            sock.settimeout(25)
            report(_end_of(sock))


def _end_of(sock: socket.socket) -> str:
    try:
        return "closed" if sock.recv(1) == b"" else "a byte"
    except TimeoutError:
        return "alive"
    except OSError as error:
        return name_of(error.errno)


def count_up(address: str, port: int) -> None:
    """Send numbered lines to an echo server until told to stop; report how many came back.

    Every line is awaited before the next, so that one lost byte is seen at once.
    """
    with socket.create_connection((address, port), timeout=20) as sock:
        greeted(sock)
        report("counting")
        reader = sock.makefile("rb")
        number = 0
        while not select.select([sys.stdin], [], [], 0)[0]:
            line = b"%d\n" % number
            sock.sendall(line)
            assert reader.readline() == line
            number += 1
        report(number)


def hammer(address: str, port: int) -> None:
    """Connect again and again; report at the end what happened when.

    Of each connection: when it was begun, and `allowed` once the server's greeting has come, else
    the errno. Times are CLOCK_MONOTONIC seconds, the same in every process.
    """
    report("hammering")
    seen = []
    while not select.select([sys.stdin], [], [], 0)[0]:
        begun = time.monotonic()
        with socket.socket(family_of(address), socket.SOCK_STREAM) as sock:
            sock.settimeout(10)
            try:
                sock.connect((address, port))
                greeted(sock)
                outcome = "allowed"
            except (OSError, AssertionError) as error:
                code = error.errno if isinstance(error, OSError) else errno.ECONNRESET
                outcome = name_of(code)
        seen.append([begun, outcome])
        if outcome != "allowed":
            time.sleep(0.001)
    report(seen)
