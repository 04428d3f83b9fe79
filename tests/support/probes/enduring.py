"""Load that is to notice nothing while slimd's processes are killed: servers, clients, counts.

Every exchange is a connect, a line with what the server sees, an echo, and a close. What fails is
counted by the call that failed and its errno ("connect ECONNREFUSED"). A call that never returns is
seen by the thread that does not end.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import signal
import socket
import struct
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

from support.probes.calls import name_of, stream
from support.probes.peers import endpoint, listen
from support.probes.reporting import report

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LIMIT_S = 3600
SILENCE_S = 20
"""A peer that says nothing for so long says nothing any more."""
PAYLOAD = 200
POLLED = 4
"""Sockets that wait in one epoll set at a time."""
JOIN_S = 60


class Tally:
    """What happened, by several threads."""

    def __init__(self) -> None:
        self.done: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self.wrong: list[Any] = []
        self.stop = threading.Event()

    def as_result(self) -> dict[str, Any]:
        return {"done": dict(self.done), "failed": dict(self.failed), "wrong": self.wrong[:20]}

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        """A call (or a few) whose failure is counted under its name; then Failed."""
        try:
            yield
        except OSError as error:
            self.failed[f"{name} {name_of(error.errno) or type(error).__name__}"] += 1
            raise Failed from None
        except EOFError:
            self.failed[f"{name} closed"] += 1
            raise Failed from None


class Failed(Exception):
    """The exchange is over; it is counted already."""


def _run(tally: Tally, functions: list[Callable[[], None]], *, join: bool) -> list[str]:
    """Run each in a thread until the line "stop"; gives the names of those that do not end.

    Any other line is answered with what has happened so far.
    """
    workers = [
        threading.Thread(target=function, daemon=True, name=f"{number}-{function.__qualname__}")
        for number, function in enumerate(functions)
    ]
    for worker in workers:
        worker.start()
    report("started")
    while input() != "stop":
        report(tally.as_result())
    tally.stop.set()
    if not join:
        return []
    deadline = time.monotonic() + JOIN_S
    for worker in workers:
        worker.join(max(0.0, deadline - time.monotonic()))
    return [worker.name for worker in workers if worker.is_alive()]


# --- the server ---------------------------------------------------------------------------------


def serve(port: int, threads: int) -> dict[str, Any]:
    """Blocking accepts in threads on `port`, a non-blocking accept loop on `port` + 1."""
    signal.alarm(LIMIT_S)
    tally = Tally()
    blocking, polled = listen("0.0.0.0", port), listen("0.0.0.0", port + 1)
    functions = [lambda: _accept_blocking(tally, blocking) for _ in range(threads)]
    _run(tally, [*functions, lambda: _accept_polled(tally, polled)], join=False)
    return tally.as_result()


def _accept_blocking(tally: Tally, listener: socket.socket) -> None:
    while not tally.stop.is_set():
        with contextlib.suppress(Failed):
            with tally.step("accept"):
                sock, accepted = listener.accept()
            _start(tally, sock, accepted)


def _accept_polled(tally: Tally, listener: socket.socket) -> None:
    listener.setblocking(False)
    with select.epoll() as events:
        events.register(listener, select.EPOLLIN | select.EPOLLET)
        while not tally.stop.is_set():
            events.poll(1)
            with contextlib.suppress(Failed):
                while True:
                    with tally.step("accept"):
                        try:
                            sock, accepted = listener.accept()
                        except BlockingIOError:
                            break
                    _start(tally, sock, accepted)


def _start(tally: Tally, sock: socket.socket, accepted: tuple[Any, ...]) -> None:
    threading.Thread(target=_serve_one, args=(tally, sock, accepted), daemon=True).start()


def _serve_one(tally: Tally, sock: socket.socket, accepted: tuple[Any, ...]) -> None:
    with sock, contextlib.suppress(Failed):
        sock.setblocking(True)
        with tally.step("getpeername"):
            peer = endpoint(sock.getpeername())
        with tally.step("getsockname"):
            name = endpoint(sock.getsockname())
        told = {"peer": peer, "accepted": endpoint(accepted), "name": name}
        with contextlib.suppress(ConnectionError):
            sock.sendall(json.dumps(told).encode() + b"\n")
            while data := sock.recv(1 << 16):
                sock.sendall(data)
        tally.done["served"] += 1


# --- the clients --------------------------------------------------------------------------------


def load(address: str, port: int, threads: int, own: str) -> dict[str, Any]:
    """Exchanges of every kind with `serve` at `address`; `own` is where this end may listen."""
    signal.alarm(LIMIT_S)
    tally = Tally()

    def blocking(number: int) -> Callable[[], None]:
        return lambda: _repeat(tally, lambda: _exchange(tally, address, port + number % 2))

    functions = [blocking(number) for number in range(threads)]
    functions.append(lambda: _repeat(tally, lambda: _exchange_polled(tally, address, port)))
    functions.append(lambda: _repeat(tally, lambda: _listen_again(tally, own, port + 2)))
    functions += [lambda: _keep_talking(tally, address, port) for _ in range(threads)]
    stuck = _run(tally, functions, join=True)
    return {**tally.as_result(), "stuck": stuck}


def _repeat(tally: Tally, exchange: Callable[[], None]) -> None:
    while not tally.stop.is_set():
        with contextlib.suppress(Failed):
            exchange()


def _exchange(tally: Tally, address: str, port: int, bound: tuple[str, int] | None = None) -> None:
    """By a blocking connect; from that address and port, if one is given."""
    with stream(address) as sock:
        if bound is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with tally.step("bind"):
                sock.bind(bound)
        with tally.step("connect"):
            sock.connect((address, port))
        if bound is not None and sock.getsockname() != bound:
            tally.wrong.append(["bound", sock.getsockname()])
        _talk(tally, sock, f"{address}:{port}", "blocking")


def _talk(tally: Tally, sock: socket.socket, peer: str, kind: str) -> None:
    _set_limit(sock)
    with tally.step(f"{kind} greeting"):
        line = _read_line(sock)
    _check(tally, sock, line, peer)
    with tally.step(f"{kind} echo"):
        _echo(sock)
    tally.done[kind] += 1


def _set_limit(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", SILENCE_S, 0))


def _read_line(sock: socket.socket) -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        chunk = sock.recv(1000)
        if not chunk:
            raise EOFError
        line += chunk
    return line


def _echo(sock: socket.socket) -> None:
    payload = os.urandom(PAYLOAD)
    sock.sendall(payload)
    received = b""
    while len(received) < PAYLOAD:
        chunk = sock.recv(PAYLOAD - len(received))
        if not chunk:
            raise EOFError
        received += chunk
    if received != payload:
        raise OSError(errno.EBADMSG, "the echo is another")


def _check(tally: Tally, sock: socket.socket, line: bytes, peer: str) -> None:
    told = json.loads(line)
    with tally.step("names"):
        seen = {"name": endpoint(sock.getsockname()), "peer": endpoint(sock.getpeername())}
    if not told["peer"] == told["accepted"] == seen["name"] or not (
        told["name"] == seen["peer"] == peer
    ):
        tally.wrong.append([told, seen])


def _exchange_polled(tally: Tally, address: str, port: int) -> None:
    """A few at once by one epoll set: registered before connect (edges) or after it (levels)."""
    with select.epoll() as events, contextlib.ExitStack() as stack:
        waiting: dict[int, tuple[socket.socket, int]] = {}
        for number in range(POLLED):
            sock, to = stack.enter_context(stream(address)), port + number // 2 % 2
            sock.setblocking(False)
            if number % 2:
                events.register(sock, select.EPOLLOUT | select.EPOLLET)
            with tally.step("non-blocking connect"):
                code = sock.connect_ex((address, to))
                if code not in (0, errno.EINPROGRESS):
                    raise OSError(code, os.strerror(code))
            if not number % 2:
                events.register(sock, select.EPOLLOUT)
            waiting[sock.fileno()] = sock, to
        deadline = time.monotonic() + SILENCE_S
        while waiting:
            ready = events.poll(max(0.0, deadline - time.monotonic()))
            if not ready:
                tally.failed["no event"] += len(waiting)
                return
            for fd, _ in ready:
                if fd in waiting:
                    sock, to = waiting.pop(fd)
                    events.unregister(fd)
                    with contextlib.suppress(Failed):
                        _finish_polled(tally, sock, f"{address}:{to}")


def _finish_polled(tally: Tally, sock: socket.socket, peer: str) -> None:
    with tally.step("SO_ERROR"):
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            raise OSError(code, os.strerror(code))
    sock.setblocking(True)
    _talk(tally, sock, peer, "polled")


def _listen_again(tally: Tally, own: str, port: int) -> None:
    """Bind, listen and close; nobody ever came, so that the next bind is free to."""
    with stream(own) as sock:
        with tally.step("bind"):
            sock.bind((own, port))
        with tally.step("listen"):
            sock.listen()
        with tally.step("listener's name"):
            if endpoint(sock.getsockname()) != f"{own}:{port}":
                tally.wrong.append(["listener", sock.getsockname()])
    tally.done["listened"] += 1
    # A few of these a second are enough.
    tally.stop.wait(0.05)


def _keep_talking(tally: Tally, address: str, port: int) -> None:
    """One connection for the whole time; it must never break."""
    with stream(address) as sock, contextlib.suppress(Failed):
        with tally.step("lasting connect"):
            sock.connect((address, port))
        _set_limit(sock)
        with tally.step("lasting greeting"):
            line = _read_line(sock)
        while not tally.stop.wait(0.1):
            with tally.step("lasting echo"):
                _echo(sock)
            _check(tally, sock, line, f"{address}:{port}")
            tally.done["lasting"] += 1


def exchange_by_line(address: str, port: int, own: str) -> None:
    """One exchange for each line of input, which names its kind; reports what became of it."""
    signal.alarm(LIMIT_S)
    while True:
        try:
            kind = input()
        except EOFError:
            return
        tally = Tally()
        with contextlib.suppress(Failed):
            if kind == "blocking":
                _exchange(tally, address, port)
            elif kind == "bound":
                _exchange(tally, address, port, bound=(own, port + 3))
            elif kind == "polled":
                _exchange_polled(tally, address, port)
            else:
                _listen_again(tally, own, port + 2)
        report(tally.as_result())
