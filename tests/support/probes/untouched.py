"""Sockets that Slim leaves alone, and strangers."""

from __future__ import annotations

import errno
import os
import socket
import struct
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from support.probes.peers import SO_NETNS_COOKIE, endpoint, family_of, greet, listen_on, visit
from support.probes.reporting import report


def visit_at_once(address: str, port: int, number: int) -> list[dict[str, Any]]:
    """Many visits from 20 threads."""
    with ThreadPoolExecutor(20) as pool:
        return list(pool.map(lambda _: visit(address, port), range(number)))


def refusal(address: str, port: int) -> str:
    """Name of the errno that a connect fails with; empty when it does not."""
    with socket.socket(family_of(address), socket.SOCK_STREAM) as sock:
        sock.settimeout(10)
        code = sock.connect_ex((address, port))
    return errno.errorcode[code] if code else ""


def v6only_server(port: int) -> None:
    sock = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    listen_on(sock, "::", port)
    report("listening")
    greet(sock)


def udp_server(address: str, port: int) -> None:
    """Answers each datagram with the address that it came from."""
    with socket.socket(family_of(address), socket.SOCK_DGRAM) as sock:
        sock.bind((address, port))
        report("bound")
        while True:
            _, peer = sock.recvfrom(2048)
            sock.sendto(endpoint(peer).encode(), peer)


def udp_visit(address: str, port: int) -> dict[str, Any]:
    with socket.socket(family_of(address), socket.SOCK_DGRAM) as sock:
        before = sock.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8)
        sock.settimeout(10)
        sock.connect((address, port))
        sock.send(b"who am I")
        return {
            "peer": sock.recv(2048).decode(),
            "client_name": endpoint(sock.getsockname()),
            "client_netns_is_own": sock.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8) == before,
        }


def unix_pair() -> str:
    """Path and abstract names, stream, with an fd and credentials passed."""
    with tempfile.TemporaryDirectory() as directory:
        path = str(Path(directory) / "socket")
        with (
            socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener,
            socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client,
        ):
            listener.bind(path)
            listener.listen(1)
            client.connect(path)
            server, _ = listener.accept()
            with server:
                assert client.getpeername() == path
                assert server.getsockname() == path
                raw = server.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
                assert struct.unpack("3i", raw)[0] == os.getpid()
                reader, writer = os.pipe()
                socket.send_fds(client, [b"x"], [reader])
                _, (received,), _, _ = socket.recv_fds(server, 1, 1)
                os.write(writer, b"hello")
                return os.read(received, 5).decode()


def vsock_calls() -> dict[str, Any]:
    """A family whose sockets know few of socket(7)'s options, and no connection."""
    with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as sock:
        sock.bind((socket.VMADDR_CID_ANY, socket.VMADDR_PORT_ANY))
        name = sock.getsockname()
        sock.listen()
        sock.setblocking(False)
        try:
            sock.accept()
            accepted = ""
        except OSError as error:
            accepted = errno.errorcode[error.errno or 0]
    return {"cid": name[0], "accept": accepted}


def nonblocking_refusal(address: str, port: int) -> str:
    """Name of the errno of a non-blocking connect itself."""
    with socket.socket(family_of(address), socket.SOCK_STREAM) as sock:
        sock.setblocking(False)
        code = sock.connect_ex((address, port))
    return errno.errorcode[code] if code else ""


def knock_and_stay(address: str, port: int) -> None:
    """As refusal, with the socket kept open until the input ends."""
    with socket.socket(family_of(address), socket.SOCK_STREAM) as sock:
        report(errno.errorcode.get(sock.connect_ex((address, port)), ""))
        os.read(0, 1)


def echo_request(address: str) -> dict[str, Any]:
    """Echo requests of ICMP by a raw socket and by a datagram one (icmp(7))."""
    family = family_of(address)
    protocol = socket.IPPROTO_ICMP if family == socket.AF_INET else socket.IPPROTO_ICMPV6
    request, reply = (8, 0) if family == socket.AF_INET else (128, 129)
    found: dict[str, Any] = {}
    for name, kind in (("raw", socket.SOCK_RAW), ("datagram", socket.SOCK_DGRAM)):
        try:
            with socket.socket(family, kind, protocol) as sock:
                sock.settimeout(10)
                sock.connect((address, 1))
                body = struct.pack("!BBHHH", request, 0, 0, os.getpid() & 0xFFFF, 1) + b"12345678"
                if family == socket.AF_INET:
                    body = body[:2] + _checksum(body) + body[4:]
                sock.send(body)
                found[name] = {"from": _answer(sock, reply), "peer": sock.getpeername()[0]}
        except OSError as error:
            # ping_group_range of the namespace may not have us.
            found[name] = errno.errorcode[error.errno or 0]
    return found


def _answer(sock: socket.socket, wanted: int) -> str:
    """Who sends that message of ICMP; an IPv4 raw socket gets the IP header, too."""
    while True:
        message, peer = sock.recvfrom(2048)
        is_raw4 = sock.family == socket.AF_INET and sock.type == socket.SOCK_RAW
        if message[20 if is_raw4 else 0] == wanted:
            return str(peer[0])


def _checksum(body: bytes) -> bytes:
    """Of RFC 1071."""
    total = sum(struct.unpack(f"!{len(body) // 2}H", body))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return struct.pack("!H", ~total & 0xFFFF)
