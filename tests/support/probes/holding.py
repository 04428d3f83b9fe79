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


def hold(address: str, port: int, count: int, every_s: float) -> None:
    """Open connections and keep them busy until a line of input; report what became of them.

    Each sends a numbered line every so often and waits for its echo: a byte that is lost, or
    comes twice, ends the probe with an error.
    """
    _prepare()
    holder = Holder(address, port, count)
    report(count)
    next_round = time.monotonic()
    while not holder.wait(next_round - time.monotonic()):
        if time.monotonic() >= next_round:
            holder.send_lines()
            next_round += every_s
    # Every line that is under way comes back, or its connection was ended.
    while holder.waiting:
        holder.wait(1.0)
    report({"ended": holder.ended, "alive": len(holder.socks), "lines": holder.lines})


class Holder:
    """Connections of one process, and the lines that are under way on them."""

    def __init__(self, address: str, port: int, count: int) -> None:
        self._poll = select.epoll()
        self._poll.register(sys.stdin, select.EPOLLIN)
        self.socks: dict[int, socket.socket] = {}
        self.waiting: dict[int, bytes] = {}
        self.ended: list[list[Any]] = []
        self.lines = 0
        for _ in range(count):
            sock = socket.socket(family_of(address), socket.SOCK_STREAM)
            sock.connect((address, port))
            self.socks[sock.fileno()] = sock
            self._poll.register(sock, select.EPOLLIN)

    def send_lines(self) -> None:
        """One on every connection that has none under way."""
        for fd in [fd for fd in self.socks if fd not in self.waiting]:
            self.waiting[fd] = b"%0*d\n" % (LINE_BYTES - 1, self.lines)
            try:
                self.socks[fd].sendall(self.waiting[fd])
            except OSError as error:
                self._end(fd, error)

    def wait(self, limit_s: float) -> bool:
        """Take what comes; True when there is a line of input."""
        asked = False
        for fd, _ in self._poll.poll(max(0.0, limit_s)):
            if fd == sys.stdin.fileno():
                self._poll.unregister(fd)
                asked = True
            else:
                self._take(fd)
        return asked

    def _take(self, fd: int) -> None:
        try:
            data = self.socks[fd].recv(LINE_BYTES, socket.MSG_WAITALL)
        except OSError as error:
            self._end(fd, error)
            return
        sent = self.waiting.pop(fd)
        assert data == sent, f"{data!r} instead of {sent!r}"
        self.lines += 1

    def _end(self, fd: int, error: OSError) -> None:
        self.ended.append([time.monotonic(), name_of(error.errno)])
        self.socks.pop(fd).close()
        self.waiting.pop(fd, None)
