"""Connections from sockets that cannot be brokered. Each stays open until its input ends."""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
import time
from typing import Any

from support.probes.calls import name_of
from support.probes.peers import check_echo, endpoint, family_of, greet, greeted, listen_on
from support.probes.reporting import report

IP_OPTIONS = 4
NOP = b"\x01\x01\x01\x00"


def stay_with(address: str, port: int, oddity: str) -> None:
    """Connect with that oddity, report the greeting, then wait."""
    sock = socket.socket(family_of(address), socket.SOCK_STREAM)
    match oddity:
        case "SO_BINDTODEVICE":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0\0")
        case "SO_MARK":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, 7)
        case "IP_OPTIONS":
            sock.setsockopt(socket.IPPROTO_IP, IP_OPTIONS, NOP)
        case "SO_ATTACH_FILTER":
            # One instruction: RET 65535, let everything through (linux/filter.h).
            instruction = struct.pack("=HBBI", 0x06, 0, 0, 0xFFFF)
            _attach(sock, instruction)
        case "IPV6_V6ONLY":
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        case "copy-in-another-process":
            if os.fork() == 0:
                time.sleep(50)
                os._exit(0)
        case _:
            raise AssertionError(oddity)
    stay_on(sock, address, port)


def stay_on(sock: socket.socket, address: str, port: int) -> None:
    sock.connect((address, port))
    seen: dict[str, Any] = greeted(sock)
    check_echo(sock, 100_000)
    report(seen)
    # Until the test has looked.
    os.read(0, 1)


def timed_visit(address: str, port: int) -> dict[str, Any]:
    """A visit with the time that the connect took; stays connected until the input ends."""
    started = time.monotonic()
    with socket.socket(family_of(address), socket.SOCK_STREAM) as sock:
        sock.connect((address, port))
        took = time.monotonic() - started
        seen = greeted(sock)
        check_echo(sock, 1_000_000)
        report({**seen, "took_s": took})
        os.read(0, 1)
    return seen


def filtered_server(address: str, port: int) -> None:
    """A greeting server whose listener has an option that no host socket can have."""
    listener = socket.socket(family_of(address), socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0\0")
    listen_on(listener, address, port)
    report(endpoint(listener.getsockname()))
    greet(listener)


def _attach(sock: socket.socket, program: bytes) -> None:
    import ctypes

    buffer = ctypes.create_string_buffer(program)
    # struct sock_fprog: a length, padding, a pointer.
    option = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(buffer))
    sock.setsockopt(socket.SOL_SOCKET, 26, option)


def refused_then_connected(address: str, port: int) -> dict[str, Any]:
    """Non-blocking connects to what answers with a reset, until one gets through."""
    errors: list[str] = []
    for _ in range(5):
        with socket.socket(family_of(address), socket.SOCK_STREAM) as sock:
            sock.setblocking(False)
            assert sock.connect_ex((address, port)) == errno.EINPROGRESS
            select.select([], [sock], [])
            code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code == 0:
                sock.setblocking(True)
                return {"errors": errors, **greeted(sock)}
            errors.append(name_of(code))
    return {"errors": errors}
