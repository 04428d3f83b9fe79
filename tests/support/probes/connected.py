"""Names, options and flags of a connected socket, and who shares it; see connecting.py."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import socket
import struct
from typing import Any

from support.probes.calls import libc, name_of, stream
from support.probes.peers import (
    endpoint,
    greeted,
)


def names(address: str, port: int) -> dict[str, Any]:
    """getsockname and getpeername before and after connect, and after the peer's end."""
    with stream(address) as sock:
        before = endpoint(sock.getsockname())
        try:
            sock.getpeername()
            peer_before = "connected"
        except OSError as error:
            peer_before = name_of(error.errno)
        sock.connect((address, port))
        greeting = greeted(sock)
        sock.shutdown(socket.SHUT_WR)
        assert sock.recv(1) == b""
        return {
            "before": before,
            "peer_before": peer_before,
            "greeting": greeting,
            "after_end": endpoint(sock.getsockname()),
        }


def names_with_bad_arguments(address: str, port: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    with stream(address) as sock:
        sock.connect((address, port))
        greeted(sock)
        fd = sock.fileno()
        buffer = ctypes.create_string_buffer(128)
        for name, call in (("getsockname", libc.getsockname), ("getpeername", libc.getpeername)):
            length = ctypes.c_int(128)
            for what, pointer, size in (
                ("bad pointer", ctypes.c_void_p(8), ctypes.byref(length)),
                ("bad length pointer", buffer, ctypes.c_void_p(8)),
                ("negative length", buffer, ctypes.byref(ctypes.c_int(-1))),
            ):
                call(fd, pointer, size)
                found[f"{name}: {what}"] = name_of(ctypes.get_errno())
            # Too small: what fits is written, the true length given back.
            buffer.raw = b"\xff" * 128
            length = ctypes.c_int(4)
            assert call(fd, buffer, ctypes.byref(length)) == 0
            found[f"{name}: length of 4"] = [length.value, buffer.raw[4:8] == b"\xff" * 4]
            length = ctypes.c_int(0)
            assert call(fd, ctypes.c_void_p(0), ctypes.byref(length)) == 0
            found[f"{name}: length of 0"] = length.value
    return found


def options(address: str, port: int) -> dict[str, list[Any]]:
    """Options set before the connect: [with this value before, after]."""
    sol, tcp = socket.SOL_SOCKET, socket.IPPROTO_TCP
    asked: dict[str, tuple[int, int, int | bytes]] = {
        "nodelay": (tcp, socket.TCP_NODELAY, 1),
        "keepalive": (sol, socket.SO_KEEPALIVE, 1),
        "keepidle": (tcp, socket.TCP_KEEPIDLE, 77),
        "keepintvl": (tcp, socket.TCP_KEEPINTVL, 7),
        "keepcnt": (tcp, socket.TCP_KEEPCNT, 3),
        "sndbuf": (sol, socket.SO_SNDBUF, 50_000),
        "rcvbuf": (sol, socket.SO_RCVBUF, 60_000),
        "linger": (sol, socket.SO_LINGER, struct.pack("ii", 1, 5)),
        "user timeout": (tcp, socket.TCP_USER_TIMEOUT, 12_345),
        "rcvtimeo": (sol, socket.SO_RCVTIMEO, struct.pack("ll", 20, 0)),
        "sndtimeo": (sol, socket.SO_SNDTIMEO, struct.pack("ll", 21, 0)),
        "tos": (socket.IPPROTO_IP, socket.IP_TOS, 0x10),
        "congestion": (tcp, socket.TCP_CONGESTION, b"reno"),
        "notsent lowat": (tcp, socket.TCP_NOTSENT_LOWAT, 16_384),
    }
    found: dict[str, list[Any]] = {}

    def read(level: int, name: int, value: int | bytes) -> Any:
        if isinstance(value, int):
            return sock.getsockopt(level, name)
        return sock.getsockopt(level, name, 16).rstrip(b"\0").hex()

    with stream(address) as sock:
        for what, (level, name, value) in asked.items():
            sock.setsockopt(level, name, value)
            found[what] = [read(level, name, value)]
        sock.connect((address, port))
        for what, (level, name, value) in asked.items():
            found[what].append(read(level, name, value))
        greeted(sock)
    return found


def file_state(address: str, port: int) -> list[list[bool]]:
    """[close-on-exec, non-blocking] before and after connect, for all four; the owner is kept."""
    found = []
    for cloexec in (False, True):
        for nonblocking in (False, True):
            with stream(address) as sock:
                os.set_inheritable(sock.fileno(), not cloexec)
                sock.setblocking(not nonblocking)
                number = sock.fileno()
                fcntl.fcntl(number, fcntl.F_SETOWN, os.getpid())
                assert sock.connect_ex((address, port)) in (0, errno.EINPROGRESS)
                assert sock.fileno() == number
                assert fcntl.fcntl(number, fcntl.F_GETOWN) == os.getpid()
                flags = fcntl.fcntl(number, fcntl.F_GETFD)
                status = fcntl.fcntl(number, fcntl.F_GETFL)
                found.append(
                    [
                        bool(flags & fcntl.FD_CLOEXEC) == cloexec,
                        bool(status & os.O_NONBLOCK) == nonblocking,
                    ]
                )
    return found


def duplicate_before_connect(address: str, port: int) -> dict[str, Any]:
    """dup(2) before connect: both numbers are the one connection."""
    with stream(address) as sock, socket.socket(fileno=os.dup(sock.fileno())) as copy:
        sock.connect((address, port))
        greeting = greeted(copy)
        return {
            "copy_name": endpoint(copy.getsockname()),
            "copy_peer": endpoint(copy.getpeername()),
            "greeting": greeting,
            "same_file": os.fstat(copy.fileno()).st_ino == os.fstat(sock.fileno()).st_ino,
        }


def fork_before_connect(address: str, port: int) -> dict[str, Any]:
    """fork(2) between socket and connect: the child connects, the parent uses the connection."""
    with stream(address) as sock:
        pid = os.fork()
        if pid == 0:
            os._exit(sock.connect_ex((address, port)))
        _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        greeting = greeted(sock)
        sock.sendall(b"from the parent")
        assert sock.recv(100) == b"from the parent"
        return greeting


def inherit_connection(address: str, port: int) -> dict[str, Any]:
    """A connection used by a child, after its parent closed it."""
    with stream(address) as sock:
        sock.connect((address, port))
        greeting = greeted(sock)
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(writer)
            # Until the parent has closed its copy.
            os.read(reader, 1)
            sock.sendall(b"from the child")
            is_right = sock.recv(100) == b"from the child"
            is_right &= endpoint(sock.getpeername()) == greeting["client_peer"]
            is_right &= endpoint(sock.getsockname()) == greeting["client_name"]
            os._exit(0 if is_right else 1)
        os.close(reader)
    os.close(writer)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    return greeting
