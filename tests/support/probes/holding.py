"""Thousands of connections in one process: held, kept busy, and how each of them ended."""

from __future__ import annotations

import resource
import select
import signal
import socket
import sys
import time
from typing import Any

from support.probes.calls import name_of
from support.probes.peers import family_of, listen
from support.probes.reporting import report

LINE_BYTES = 16
LIMIT_S = 300


def _prepare() -> None:
    """As many files as we may have, and the time that it takes."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    signal.alarm(LIMIT_S)


def echo(address: str, port: int) -> None:
    """Echo on every connection; at a line of input, report when and how connections ended."""
    _prepare()
    listener = listen(address, port, backlog=4096)
    listener.setblocking(False)
    poll = select.epoll()
    poll.register(listener, select.EPOLLIN)
    poll.register(sys.stdin, select.EPOLLIN)
    clients: dict[int, socket.socket] = {}
    ended: list[list[Any]] = []
    report("listening")
    while True:
        for fd, _ in poll.poll():
            if fd == listener.fileno():
                sock, _ = listener.accept()
                clients[sock.fileno()] = sock
                poll.register(sock, select.EPOLLIN)
            elif fd == sys.stdin.fileno():
                sys.stdin.readline()
                report(ended)
            else:
                outcome = _echo_one(clients[fd])
                if outcome:
                    ended.append([time.monotonic(), outcome])
                    clients.pop(fd).close()


def _echo_one(sock: socket.socket) -> str:
    """Echo what is there; how the connection ended, if it did."""
    try:
        data = sock.recv(1 << 16)
        if not data:
            return "closed"
        # A few lines are under way: the buffer of the kernel always has room for them.
        sock.sendall(data)
    except OSError as error:
        return name_of(error.errno)
    return ""


def hold(address: str, port: int, count: int) -> None:
    """Open connections and keep them busy until a line of input; report what became of them.

    Each sends a numbered line and waits for its echo: a byte that is lost, or comes twice, ends
    the probe with an error.
    """
    _prepare()
    socks: dict[int, socket.socket] = {}
    sent: dict[int, bytes] = {}
    poll = select.epoll()
    for _ in range(count):
        sock = socket.socket(family_of(address), socket.SOCK_STREAM)
        sock.connect((address, port))
        socks[sock.fileno()] = sock
        poll.register(sock, select.EPOLLIN)
    report(count)
    poll.register(sys.stdin, select.EPOLLIN)
    ended: list[list[Any]] = []
    lines = 0

    def end(fd: int, error: OSError) -> None:
        ended.append([time.monotonic(), name_of(error.errno)])
        socks.pop(fd).close()
        sent.pop(fd, None)

    def send(fd: int) -> None:
        sent[fd] = b"%0*d\n" % (LINE_BYTES - 1, lines)
        try:
            socks[fd].sendall(sent[fd])
        except OSError as error:
            end(fd, error)

    for fd in [*socks]:
        send(fd)
    while True:
        # A pause, so that ten thousand connections leave the processors something.
        time.sleep(0.02)
        for fd, _ in poll.poll():
            if fd == sys.stdin.fileno():
                report({"ended": ended, "alive": len(socks), "lines": lines})
                return
            try:
                data = socks[fd].recv(LINE_BYTES, socket.MSG_WAITALL)
            except OSError as error:
                end(fd, error)
                continue
            assert data == sent[fd], f"{data!r} instead of {sent[fd]!r}"
            lines += 1
            send(fd)
