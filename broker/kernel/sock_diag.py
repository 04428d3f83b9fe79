"""TCP sockets as the kernel lists them: sock_diag(7) over netlink, by hand.

Used beside trapped calls and for tables of many thousand sockets, so messages are unpacked with
struct and nothing is built that was not asked for. Layouts: linux/inet_diag.h, linux/sock_diag.h.
"""

from __future__ import annotations

import ctypes
import errno
import ipaddress
import os
import socket
import struct
from dataclasses import dataclass

from slim.broker.endpoints import Endpoint, PortRange, unmapped
from slim.broker.errors import SyscallError

# From linux/netlink.h, linux/sock_diag.h and linux/inet_diag.h.
NETLINK_ADD_MEMBERSHIP = 1
NETLINK_SOCK_DIAG = 4
NLM_F_ACK = 4
NLM_F_DUMP = 0x300
NLM_F_REQUEST = 1
NLMSG_DONE = 3
NLMSG_ERROR = 2
SKNLGRP_INET6_TCP_DESTROY = 3
SKNLGRP_INET_TCP_DESTROY = 1
SOCK_DESTROY = 21
SOCK_DIAG_BY_FAMILY = 20
SOL_NETLINK = 270
SO_ATTACH_FILTER = 26

ALL_STATES = 0xFFF
STATE_NAMES = {
    1: "estab",
    2: "syn-sent",
    3: "syn-recv",
    4: "fin-wait-1",
    5: "fin-wait-2",
    6: "time-wait",
    7: "close",
    8: "close-wait",
    9: "last-ack",
    10: "listen",
    11: "closing",
    12: "syn-recv",
}
"""TCP states of linux/tcp_states.h, spelled as ss(8) does."""

_NLMSGHDR = struct.Struct("=IHHII")
# inet_diag_req_v2: family, protocol, extensions, pad, states; then inet_diag_sockid.
_REQUEST = struct.Struct("=BBBBI")
_PORTS = struct.Struct("!HH")
_COOKIE = struct.Struct("=II")
_SOCKID_BYTES = 48
# inet_diag_msg, from the start of the message body: family, state, timer, retransmits; sport,
# dport; src, dst; interface; cookie; expires, rqueue, wqueue, uid, inode.
_MESSAGE = struct.Struct("=BBBB")
_MESSAGE_BYTES = 72
_COOKIE_OFFSET = 4 + 4 + 16 + 16 + 4
_TAIL = struct.Struct("=5I")
_COOKIE_U64 = struct.Struct("=Q")


@dataclass(frozen=True, slots=True)
class TcpSocket:
    """One TCP socket of the current network namespace."""

    family: int
    state: int
    local: Endpoint
    peer: Endpoint
    cookie: int
    uid: int
    inode: int

    @property
    def state_name(self) -> str:
        return STATE_NAMES.get(self.state, str(self.state))


def dump_tcp(*, states: int = ALL_STATES) -> list[TcpSocket]:
    """SOCK_DIAG_BY_FAMILY dump, Linux 3.3: every TCP socket in the states (a mask of 1 << state)."""
    found = []
    for family in (socket.AF_INET, socket.AF_INET6):
        for data in _dump(family, states):
            found.extend(_parse(data, offset) for offset in _messages(data))
    return found


def cookies_alive() -> set[int]:
    """SOCK_DIAG_BY_FAMILY dump, Linux 3.3: SO_COOKIE of every TCP socket, nothing else unpacked."""
    found: set[int] = set()
    unpack = _COOKIE_U64.unpack_from
    shift = _NLMSGHDR.size + _COOKIE_OFFSET
    for family in (socket.AF_INET, socket.AF_INET6):
        for data in _dump(family, ALL_STATES):
            found.update(unpack(data, offset + shift)[0] for offset in _messages(data))
    return found


def find_tcp(cookie: int, local: Endpoint, peer: Endpoint | None) -> TcpSocket | None:
    """SOCK_DIAG_BY_FAMILY lookup, Linux 3.3: the socket with that cookie and those addresses.

    For a listener `peer` is None. None when it is gone. A listener bound in an AF_INET6 socket to
    a mapped address is found as well.
    """
    families = (socket.AF_INET, socket.AF_INET6) if local.address.version == 4 else (socket.AF_INET6,)
    with _open() as netlink:
        for family in families:
            netlink.send(_lookup(SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST, family, local, peer, cookie))
            data = netlink.recv(65536)
            _, kind, _, _, _ = _NLMSGHDR.unpack_from(data)
            if kind == SOCK_DIAG_BY_FAMILY:
                return _parse(data, 0)
            code = -struct.unpack_from("=i", data, _NLMSGHDR.size)[0]
            if code not in (errno.ENOENT, errno.ESTALE):
                raise SyscallError("sock_diag", code, str(local))
    return None


def destroy_tcp(found: TcpSocket) -> bool:
    """SOCK_DESTROY, Linux 4.5: ECONNABORTED here, RST to the peer. False: it was gone already."""
    request = _lookup(
        SOCK_DESTROY,
        NLM_F_REQUEST | NLM_F_ACK,
        found.family,
        found.local,
        found.peer if found.peer.port else None,
        found.cookie,
    )
    with _open() as netlink:
        netlink.send(request)
        data = netlink.recv(65536)
    code = -struct.unpack_from("=i", data, _NLMSGHDR.size)[0]
    if code in (errno.ENOENT, errno.ESTALE):
        return False
    if code:
        raise SyscallError("sock_diag(SOCK_DESTROY)", code, str(found.local))
    return True


class ListenerDeaths:
    """SKNLGRP_INET_TCP_DESTROY, Linux 4.4: tells when listeners on the ports are closed for good.

    A filter in the kernel (SO_ATTACH_FILTER) passes only sockets with a local port in the range
    and no peer, so that no other socket's end on this host wakes anybody. Needs CAP_NET_ADMIN.
    """

    def __init__(self, ports: PortRange) -> None:
        self.overflowed = False
        """Events were lost; look for yourself."""
        self._netlink = _open()
        try:
            # Named, so that its memory lives until the kernel has copied the program.
            program = _port_filter(ports)
            self._netlink.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, bytes(program))
            # An unbound socket has port id 0, the kernel's own, and is passed over as the sender.
            self._netlink.bind((0, 0))
            for group in (SKNLGRP_INET_TCP_DESTROY, SKNLGRP_INET6_TCP_DESTROY):
                self._netlink.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group)
            self._netlink.setblocking(False)
        except OSError as error:
            self._netlink.close()
            raise SyscallError("sock_diag multicast", error.errno or 0) from None

    def fileno(self) -> int:
        return self._netlink.fileno()

    def close(self) -> None:
        self._netlink.close()

    def receive(self) -> list[int]:
        """SO_COOKIE of every listener that ended since the last call."""
        found: list[int] = []
        while True:
            try:
                data = self._netlink.recv(4096)
            except BlockingIOError:
                return found
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self.overflowed = True
                continue
            if len(data) >= _NLMSGHDR.size + _MESSAGE_BYTES:
                found.append(
                    _COOKIE_U64.unpack_from(data, _NLMSGHDR.size + _COOKIE_OFFSET)[0]
                )


class _sock_filter(ctypes.Structure):
    _fields_ = [
        ("code", ctypes.c_ushort),
        ("jt", ctypes.c_ubyte),
        ("jf", ctypes.c_ubyte),
        ("k", ctypes.c_uint),
    ]


class _sock_fprog(ctypes.Structure):
    _fields_ = [("len", ctypes.c_ushort), ("filter", ctypes.POINTER(_sock_filter))]


def _port_filter(ports: PortRange) -> _sock_fprog:
    """Classic BPF over a netlink message: local port in range, peer port 0 (linux/filter.h)."""
    load_half, jump_ge, jump_gt, jump_eq, ret = 0x28, 0x35, 0x25, 0x15, 0x06
    sport, dport = _NLMSGHDR.size + 4, _NLMSGHDR.size + 6
    program = (_sock_filter * 7)(
        _sock_filter(load_half, 0, 0, sport),
        _sock_filter(jump_ge, 0, 4, ports.first),
        _sock_filter(jump_gt, 3, 0, ports.last),
        _sock_filter(load_half, 0, 0, dport),
        _sock_filter(jump_eq, 0, 1, 0),
        _sock_filter(ret, 0, 0, 0xFFFF),
        _sock_filter(ret, 0, 0, 0),
    )
    return _sock_fprog(7, program)


def _open() -> socket.socket:
    return socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_SOCK_DIAG
    )


def _lookup(
    kind: int, flags: int, family: int, local: Endpoint, peer: Endpoint | None, cookie: int
) -> bytes:
    ports = _PORTS.pack(local.port, peer.port if peer else 0)
    body = (
        _REQUEST.pack(family, socket.IPPROTO_TCP, 0, 0, ALL_STATES)
        + ports
        + _address(local, family)
        + (_address(peer, family) if peer else bytes(16))
        + struct.pack("=I", 0)
        + _COOKIE.pack(cookie & 0xFFFFFFFF, cookie >> 32)
    )
    return _NLMSGHDR.pack(_NLMSGHDR.size + len(body), kind, flags, 1, 0) + body


def _address(endpoint: Endpoint, family: int) -> bytes:
    packed = endpoint.address.packed
    if family == socket.AF_INET6 and len(packed) == 4:
        return b"\0" * 10 + b"\xff\xff" + packed
    return packed.ljust(16, b"\0")


def _dump(family: int, states: int) -> list[bytes]:
    body = _REQUEST.pack(family, socket.IPPROTO_TCP, 0, 0, states) + bytes(_SOCKID_BYTES)
    request = _NLMSGHDR.pack(
        _NLMSGHDR.size + len(body), SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST | NLM_F_DUMP, 1, 0
    )
    parts = []
    with _open() as netlink:
        netlink.send(request + body)
        while True:
            data = netlink.recv(1 << 17)
            parts.append(data)
            if _is_last(data):
                return parts


def _is_last(data: bytes) -> bool:
    offset = 0
    while offset + _NLMSGHDR.size <= len(data):
        length, kind, _, _, _ = _NLMSGHDR.unpack_from(data, offset)
        if kind == NLMSG_DONE:
            return True
        if kind == NLMSG_ERROR:
            code = -struct.unpack_from("=i", data, offset + _NLMSGHDR.size)[0]
            raise SyscallError("sock_diag", code, os.strerror(code))
        offset += max((length + 3) & ~3, _NLMSGHDR.size)
    return False


def _messages(data: bytes) -> list[int]:
    """Offsets of the inet_diag messages in a datagram."""
    found = []
    offset = 0
    while offset + _NLMSGHDR.size <= len(data):
        length, kind, _, _, _ = _NLMSGHDR.unpack_from(data, offset)
        if kind == SOCK_DIAG_BY_FAMILY and length >= _NLMSGHDR.size + _MESSAGE_BYTES:
            found.append(offset)
        offset += max((length + 3) & ~3, _NLMSGHDR.size)
    return found


def _parse(data: bytes, offset: int) -> TcpSocket:
    body = offset + _NLMSGHDR.size
    family, state, _, _ = _MESSAGE.unpack_from(data, body)
    sport, dport = _PORTS.unpack_from(data, body + 4)
    width = 4 if family == socket.AF_INET else 16
    source = ipaddress.ip_address(data[body + 8 : body + 8 + width])
    destination = ipaddress.ip_address(data[body + 24 : body + 24 + width])
    (cookie,) = _COOKIE_U64.unpack_from(data, body + _COOKIE_OFFSET)
    _, _, _, uid, inode = _TAIL.unpack_from(data, body + _COOKIE_OFFSET + 8)
    return TcpSocket(
        family,
        state,
        Endpoint(unmapped(source), sport),
        Endpoint(unmapped(destination), dport),
        cookie,
        uid,
        inode,
    )
