"""bind(2), listen(2) and accept(2): servers, and what they see; see connecting.py."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import select
import signal
import socket
import struct
import time
from typing import Any

from support.probes.calls import libc, name_of, stream
from support.probes.peers import (
    endpoint,
    family_of,
    greet_one,
    listen,
    listen_on,
)
from support.probes.reporting import report


def listen_on_many(first: int, count: int) -> None:
    """Listeners on that many ports in a row; reports when all listen, and stays."""
    listeners = [listen("0.0.0.0", port) for port in range(first, first + count)]
    report(len(listeners))
    signal.pause()


def accept_calls(address: str, port: int) -> None:
    """A listener; reports when it listens. The test makes one connection for each step."""
    with listen(address, port) as listener:
        listener.setblocking(False)
        report({"empty": name_of(_error_of(listener.accept))})
        _wait_for(listener)
        with listener.accept()[0] as sock:
            # A connection inherits O_NONBLOCK on no Linux.
            status = fcntl.fcntl(sock.fileno(), fcntl.F_GETFL)
            report({"nonblocking_of_accept": bool(status & os.O_NONBLOCK)})
            _say(sock)
        for flags in (0, socket.SOCK_NONBLOCK, socket.SOCK_CLOEXEC):
            _wait_for(listener)
            fd = libc.accept4(listener.fileno(), None, None, flags)
            assert fd >= 0, name_of(ctypes.get_errno())
            with socket.socket(fileno=fd) as sock:
                report(
                    {
                        "nonblocking": bool(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_NONBLOCK),
                        "cloexec": bool(fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC),
                        "peer": endpoint(sock.getpeername()),
                        "family": int(sock.family),
                    }
                )
                _say(sock)
        assert libc.accept4(listener.fileno(), None, None, 1) == -1
        report({"wrong_flags": name_of(ctypes.get_errno())})
        report({"empty": name_of(_error_of(listener.accept))})


def _say(sock: socket.socket) -> None:
    """A greeting, for visit to read, and its echo."""
    line = f'{{"peer": "{endpoint(sock.getpeername())}"}}\n'
    sock.setblocking(True)
    sock.sendall(line.encode())
    while data := sock.recv(1 << 16):
        sock.sendall(data)


def _wait_for(sock: socket.socket) -> None:
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    assert poll.poll(20_000), "no connection came"


def _error_of(call: Any) -> int:
    try:
        call()
    except OSError as error:
        return error.errno or 0
    return 0


def accept_with_timeout(address: str, port: int) -> dict[str, Any]:
    """SO_RCVTIMEO on a listener that nobody connects to."""
    with listen(address, port) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 0, 300_000))
        started = time.monotonic()
        code = -1
        if libc.accept(listener.fileno(), None, None) < 0:
            code = ctypes.get_errno()
        return {"errno": name_of(code), "took_s": time.monotonic() - started}


def accept_interrupted(address: str, port: int, restart: bool) -> None:
    """SIGUSR1 during accept; with `restart` the test connects afterwards."""
    seen: list[int] = []
    signal.signal(signal.SIGUSR1, lambda number, _: seen.append(number))
    signal.siginterrupt(signal.SIGUSR1, not restart)
    with listen(address, port) as listener:
        report("listening")
        # The C call, so that nothing of Python's takes EINTR up again.
        fd = libc.accept(listener.fileno(), None, None)
        code = 0 if fd >= 0 else ctypes.get_errno()
        report({"errno": name_of(code), "signals": len(seen)})
        if fd >= 0:
            with socket.socket(fileno=fd) as sock:
                _say(sock)


def accept_bad_pointer(address: str, port: int) -> None:
    """A bad pointer for the address loses the connection (accept(2)); the next is fine."""
    with listen(address, port) as listener:
        report("listening")
        _wait_for(listener)
        length = ctypes.c_int(128)
        pointers = (ctypes.c_void_p(8), ctypes.byref(length))
        fd = libc.accept(listener.fileno(), *pointers)
        report({"fd": min(fd, 0), "errno": name_of(ctypes.get_errno())})
        sock, _ = listener.accept()
        with sock:
            _say(sock)


def accept_elsewhere(address: str, port: int) -> dict[str, str]:
    """accept on sockets that do not listen, or on none."""
    found = {}
    with stream(address) as sock:
        found["fresh"] = name_of(_error_of(sock.accept))
        sock.connect((address, port))
        found["connected"] = name_of(_error_of(sock.accept))
        found["listen while connected"] = name_of(_error_of(sock.listen))
        found["bind while connected"] = name_of(_error_of(lambda: sock.bind(("", 0))))
    with socket.socket(family_of(address), socket.SOCK_DGRAM) as datagrams:
        found["datagram"] = name_of(_error_of(datagrams.accept))
    return found


def listener_names(address: str, port: int) -> dict[str, Any]:
    with listen(address, port) as listener:
        found = {
            "name": endpoint(listener.getsockname()),
            "peer": name_of(_error_of(listener.getpeername)),
            "accepts": listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN),
        }
        listener.listen(5)
        found["name after a second listen"] = endpoint(listener.getsockname())
        found["connect"] = name_of(listener.connect_ex((address, port)))
        found["name after connect"] = endpoint(listener.getsockname())
    return found


def v6only_of_listeners(first_port: int) -> dict[str, Any]:
    """What getsockopt(IPV6_V6ONLY) says of listeners, also with odd lengths and pointers."""
    option = (socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
    seen: dict[str, Any] = {}
    for number, wanted in enumerate((0, 1)):
        with socket.socket(socket.AF_INET6) as listener:
            listener.setsockopt(*option, wanted)
            listener.bind(("::", first_port + number))
            listener.listen()
            told = [listener.getsockopt(*option), listener.getsockopt(*option, 2).hex()]
            seen[f"v6only {wanted}"] = [*told, listener.getsockopt(*option, 8).hex()]
            length = ctypes.c_int(4)
            bad = libc.getsockopt(listener.fileno(), *option, None, ctypes.byref(length))
            seen[f"nowhere {wanted}"] = [bad, name_of(ctypes.get_errno()), length.value]
            length.value = -1
            room = (ctypes.c_int * 4)(7, 7, 7, 7)
            libc.getsockopt(listener.fileno(), *option, room, ctypes.byref(length))
            seen[f"negative {wanted}"] = [*room, length.value]
    with listen("0.0.0.0", first_port + 2) as listener:
        seen["ipv4"] = name_of(_error_of(lambda: listener.getsockopt(*option)))
    return seen


def listen_without_bind() -> str:
    """The kernel chooses the port; the name must be the overlay's, and reachable."""
    with socket.socket() as listener:
        listener.listen(1)
        address, port = listener.getsockname()
        assert address == "0.0.0.0"
        with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
            server, _ = listener.accept()
            with server:
                assert server.getpeername() == client.getsockname()
        return f"{address}:{port}"


def rebind(address: str, port: int, times: int) -> int:
    """close, bind and listen again at once, without SO_REUSEADDR; nothing was accepted."""
    for number in range(times):
        sock = stream(address)
        try:
            sock.bind((address, port))
        except OSError as error:
            raise AssertionError(f"bind number {number}: {error}") from None
        sock.listen(8)
        sock.close()
    return times


def connect_after_close(address: str, times: int, has_connected: bool) -> list[str]:
    """Connects to a listener of our own that was closed just now; gives the errnos, in turn
    of a blocking and of a non-blocking call."""
    seen = []
    for number in range(times):
        listener = listen(address, 0)
        name = listener.getsockname()
        if has_connected:
            with stream(address) as first:
                first.connect(name)
        listener.close()
        with stream(address) as sock:
            sock.setblocking(number % 2 == 0)
            code = sock.connect_ex(name)
            if code == errno.EINPROGRESS:
                select.select([], [sock], [], 20)
                code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        seen.append(name_of(code))
    return seen


def bind_in_use(address: str, port: int) -> str:
    """A port that somebody else in the container listens on."""
    with listen(address, port), stream(address) as second:
        return name_of(_error_of(lambda: second.bind((address, port))))


def reuseport_group(address: str, port: int, members: int) -> None:
    """Processes with a listener each in one SO_REUSEPORT group; connections say which it was."""
    for _ in range(members):
        if os.fork() == 0:
            sock = stream(address)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            listen_on(sock, address, port)
            report(os.getpid())
            _serve_greeting(sock)
            os._exit(0)
    while True:
        time.sleep(60)


def prefork(address: str, port: int, workers: int) -> None:
    """One listener, inherited by workers that all accept on it, each with a greeting."""
    listener = listen(address, port)
    for _ in range(workers):
        if os.fork() == 0:
            _serve_greeting(listener)
            os._exit(0)
    report(endpoint(listener.getsockname()))
    while True:
        time.sleep(60)


def _serve_greeting(listener: socket.socket) -> None:
    while True:
        sock, accepted = listener.accept()
        greet_one(sock, accepted)
