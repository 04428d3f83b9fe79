"""Programs that share, close and run out of fds while slimd works on them."""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
import sys
import threading
import time
from typing import Any

from support.probes.calls import name_of, stream
from support.probes.fallbacks import stay_on
from support.probes.peers import endpoint, greeted, listen
from support.probes.reporting import report

SO_COOKIE = 57


def stay_with_copy_in_flight(address: str, port: int) -> None:
    """A copy of the socket is on its way through a unix socket, in nobody's fd table."""
    ours, theirs = socket.socketpair()
    with ours, theirs, stream(address) as sock:
        socket.send_fds(ours, [b"x"], [sock.fileno()])
        stay_on(sock, address, port)


def connect_and_fork(address: str, port: int) -> dict[str, Any]:
    """Another thread forks while the connect is held; the child keeps its copy of the socket."""
    children: list[int] = []

    def fork() -> None:
        time.sleep(0.1)
        pid = os.fork()
        if pid == 0:
            signal.pause()
        children.append(pid)

    forker = threading.Thread(target=fork)
    forker.start()
    try:
        with stream(address) as sock:
            code = sock.connect_ex((address, port))
            return {"errno": name_of(code), **(greeted(sock) if code == 0 else {})}
    finally:
        forker.join()
        for pid in children:
            os.kill(pid, signal.SIGKILL)


def connect_again_after_fork(address: str, port: int) -> dict[str, Any]:
    """A refused socket, of which a child has a copy by the time it is connected again."""
    with stream(address) as sock:
        sock.setblocking(False)
        assert sock.connect_ex((address, port)) == errno.EINPROGRESS
        select.select([], [sock], [])
        first = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        child = os.fork()
        if child == 0:
            signal.pause()
        try:
            sock.setblocking(True)
            second = sock.connect_ex((address, port))
        finally:
            os.kill(child, signal.SIGKILL)
    with stream(address) as other:
        third = other.connect_ex((address, port))
    return {"errors": [name_of(code) for code in (first, second, third)]}


def close_under_connect(address: str, port: int) -> dict[str, bool]:
    """Another thread closes the socket while its connect is held, and the number is used anew."""
    sock = stream(address)
    fd = sock.fileno()
    connecting = threading.Thread(target=sock.connect_ex, args=((address, port),))
    connecting.start()
    time.sleep(0.1)
    os.close(fd)
    with socket.socket() as other:
        assert other.fileno() == fd
        cookie = other.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8)
        connecting.join()
        sock.detach()
        return {"same": other.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8) == cookie}


def connect_after_close(address: str, port: int, nonblocking: bool) -> None:
    """After a line of input, a listener is closed and connected to: the errno's name."""
    listener = listen(address, port)
    report("listening")
    sys.stdin.readline()
    listener.close()
    with stream(address) as sock:
        sock.setblocking(not nonblocking)
        code = sock.connect_ex((address, port))
        if code == errno.EINPROGRESS:
            select.select([], [sock], [], 20)
            code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    report(name_of(code))


def accept_each_line(address: str, port: int) -> None:
    """For each line of input, one accept: the errno, or the peer and what it sent first."""
    with listen(address, port) as listener:
        report("listening")
        while True:
            try:
                input()
            except EOFError:
                return
            try:
                taken, peer = listener.accept()
            except OSError as error:
                report({"errno": errno.errorcode[error.errno or 0]})
                continue
            with taken:
                report({"peer": endpoint(peer), "data": taken.recv(4).decode()})


def send_and_stay(address: str, port: int, data: str) -> None:
    """Connect, send, report the own name, and stay."""
    with socket.create_connection((address, port), timeout=10) as sock:
        sock.sendall(data.encode())
        report(endpoint(sock.getsockname()))
        signal.pause()


def connect_each_line(address: str, port: int) -> None:
    """For each line of input, one connect and its errno."""
    report("started")
    while True:
        try:
            input()
        except EOFError:
            return
        with stream(address) as sock:
            report(name_of(sock.connect_ex((address, port))))
