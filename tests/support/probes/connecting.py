"""connect(2), and how it fails; each probe says what it saw.

`address` and `port` are those of a greeting server (probes/peers.py) unless said otherwise.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import signal
import socket
import struct
import threading
import time
from typing import Any

from support.probes.calls import libc, name_of, stream
from support.probes.peers import (
    family_of,
    greeted,
)


def connect_nonblocking(address: str, port: int) -> dict[str, Any]:
    with stream(address) as sock:
        sock.setblocking(False)
        first = sock.connect_ex((address, port))
        poll = select.poll()
        poll.register(sock, select.POLLOUT)
        events = poll.poll(10_000)
        error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        again = sock.connect_ex((address, port))
        still_nonblocking = not sock.getblocking()
        sock.setblocking(True)
        return {
            "first": name_of(first),
            "events": events[0][1] if events else 0,
            "so_error": error,
            # The first connect after the handshake says 0 or EISCONN by its route: see connect(2).
            "third": name_of(sock.connect_ex((address, port))),
            "second_is_fine": again in (0, errno.EISCONN),
            "still_nonblocking": still_nonblocking,
            "greeting": greeted(sock),
        }


def connect_nonblocking_to_nobody(address: str, port: int) -> dict[str, Any]:
    """To an address that nobody has: what connect says, then and in the end."""
    with stream(address) as sock:
        sock.setblocking(False)
        first = sock.connect_ex((address, port))
        second = sock.connect_ex((address, port))
        poll = select.poll()
        poll.register(sock, select.POLLOUT)
        before = poll.poll(0)
        events = poll.poll(20_000)
        return {
            "first": name_of(first),
            "second": name_of(second),
            "before": [seen for _, seen in before],
            "events": [seen for _, seen in events],
            "so_error": name_of(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)),
        }


def connect_and_poll_first(address: str, port: int) -> dict[str, Any]:
    """A socket that is in an epoll set, a poll and a select before it is connected."""
    with stream(address) as sock, select.epoll() as epoll:
        sock.setblocking(False)
        epoll.register(sock, select.EPOLLOUT | select.EPOLLIN | select.EPOLLET)
        epoll.poll(0)
        sock.connect_ex((address, port))
        seen = 0
        deadline = time.monotonic() + 10
        while not (seen & select.EPOLLIN and seen & select.EPOLLOUT):
            assert time.monotonic() < deadline, f"events until now: {seen:#x}"
            for _, events in epoll.poll(1):
                seen |= events
        # The number is registered still: natively a second registration is EEXIST.
        try:
            epoll.register(sock, select.EPOLLIN)
            registered = ""
        except FileExistsError:
            registered = "EEXIST"
        sock.setblocking(True)
        return {"registered": registered, "greeting": greeted(sock)}


def connect_again_while_connected(address: str, port: int) -> list[str]:
    with stream(address) as sock:
        codes = [sock.connect_ex((address, port)) for _ in range(3)]
    return [name_of(code) for code in codes]


def connect_refused(address: str, port: int) -> dict[str, Any]:
    """`port` is one that nobody listens on."""
    with stream(address) as sock:
        blocking = sock.connect_ex((address, port))
        usable_after = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    with stream(address) as sock:
        sock.setblocking(False)
        first = sock.connect_ex((address, port))
        poll = select.poll()
        poll.register(sock, select.POLLOUT)
        poll.poll(10_000)
        late = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    return {
        "blocking": name_of(blocking),
        "so_error_after": usable_after,
        "nonblocking": name_of(first),
        "so_error": name_of(late),
    }


def refused_then_connected(address: str, port: int, refused_port: int) -> dict[str, Any]:
    """The same socket after a refusal, as programs try one address after the other."""
    with stream(address) as sock:
        assert sock.connect_ex((address, refused_port)) == errno.ECONNREFUSED
        sock.connect((address, port))
        return greeted(sock)


def connect_with_timeout(address: str, port: int, timeout_s: float) -> dict[str, Any]:
    """SO_SNDTIMEO towards an address that answers nothing."""
    with stream(address) as sock:
        seconds, rest = divmod(timeout_s, 1)
        value = struct.pack("ll", int(seconds), int(rest * 1e6))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, value)
        started = time.monotonic()
        code = sock.connect_ex((address, port))
        return {"errno": name_of(code), "took_s": time.monotonic() - started}


def connect_interrupted(address: str, port: int, restart: bool) -> dict[str, Any]:
    """A blocking connect to an address that answers nothing, and SIGALRM meanwhile."""
    seen: list[float] = []
    started = time.monotonic()
    signal.signal(signal.SIGUSR1, lambda *_: seen.append(time.monotonic()))
    signal.siginterrupt(signal.SIGUSR1, not restart)
    with stream(address) as sock:
        threading.Thread(target=_interrupt_twice, args=(os.getpid(), sock, restart)).start()
        # Not sock.connect: Python would take the call up again after EINTR.
        code = raw_connect(sock.fileno(), address, port)
        took = time.monotonic() - started
    return {"errno": name_of(code), "signals": len(seen), "took_s": took}


def _interrupt_twice(pid: int, sock: socket.socket, restart: bool) -> None:
    time.sleep(0.3)
    os.kill(pid, signal.SIGUSR1)
    if restart:
        time.sleep(0.3)
        # Ends a connect that goes on natively: shutdown(2) wakes it.
        sock.shutdown(socket.SHUT_RDWR)


def raw_connect(fd: int, address: str, port: int) -> int:
    """connect(2) itself; gives the errno."""
    raw = sockaddr(address, port)
    if libc.connect(fd, raw, len(raw)) == 0:
        return 0
    return ctypes.get_errno()


def sockaddr(address: str, port: int) -> bytes:
    if family_of(address) == socket.AF_INET:
        return struct.pack("=H", socket.AF_INET) + struct.pack(
            "!H4s8x", port, socket.inet_pton(socket.AF_INET, address)
        )
    return struct.pack("=H", socket.AF_INET6) + struct.pack(
        "!HI16sI", port, 0, socket.inet_pton(socket.AF_INET6, address), 0
    )


def disconnect(address: str, port: int) -> dict[str, Any]:
    """AF_UNSPEC: the socket can be connected anew."""
    with stream(address) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.connect((address, port))
        greeted(sock)
        unspec = struct.pack("=H", socket.AF_UNSPEC) + bytes(14)
        code = libc.connect(sock.fileno(), unspec, len(unspec))
        try:
            sock.getpeername()
            peer = "connected"
        except OSError as error:
            peer = name_of(error.errno)
        sock.connect((address, port))
        return {
            "disconnect": code,
            "peer": peer,
            "nodelay": sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY),
            "greeting": greeted(sock),
        }


def connect_bound(address: str, port: int, own: str, own_port: int) -> dict[str, Any]:
    """From an address and port that the program chose."""
    with stream(address) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((own, own_port))
        sock.connect((address, port))
        return greeted(sock)


def connect_bad_arguments(address: str, port: int) -> dict[str, str]:
    """Errno by mistake; the socket must be as before after each, and work at the end."""
    raw = sockaddr(address, port)
    buffer = ctypes.create_string_buffer(raw, len(raw))
    found = {}
    with stream(address) as sock:
        fd = sock.fileno()
        for what, pointer, length in (
            ("bad pointer", ctypes.c_void_p(8), len(raw)),
            ("no pointer", ctypes.c_void_p(0), len(raw)),
            ("length 0", buffer, 0),
            ("length 1", buffer, 1),
            ("short", buffer, len(raw) // 2),
            ("length negative", buffer, -1),
            ("length huge", buffer, 1 << 20),
        ):
            libc.connect(fd, pointer, ctypes.c_int(length))
            found[what] = name_of(ctypes.get_errno())
        wrong = struct.pack("=H", 77) + raw[2:]
        libc.connect(fd, wrong, len(wrong))
        found["family"] = name_of(ctypes.get_errno())
        sock.connect((address, port))
        greeted(sock)
    libc.connect(999, buffer, len(raw))
    found["no fd"] = name_of(ctypes.get_errno())
    with open("/dev/null") as file:
        libc.connect(file.fileno(), buffer, len(raw))
        found["no socket"] = name_of(ctypes.get_errno())
    return found


def connect_mapped(address: str, port: int) -> dict[str, Any]:
    """An AF_INET6 socket towards an IPv4 address (ipv6(7))."""
    with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as sock:
        sock.connect((f"::ffff:{address}", port))
        return {**greeted(sock), "raw_peer": sock.getpeername()[0]}
