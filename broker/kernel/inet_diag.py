"""The messages of sock_diag(7) about TCP sockets, packed and unpacked; no system call.

Counterpart: sock_diag. Layouts: linux/netlink.h, linux/inet_diag.h, linux/tcp.h.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from slim.broker.endpoints import Address, Endpoint, PortRange, unmapped

if TYPE_CHECKING:
    from collections.abc import Iterator

# From linux/netlink.h, linux/sock_diag.h and linux/inet_diag.h.
INET_DIAG_BC_S_GE = 2
INET_DIAG_BC_S_LE = 3
INET_DIAG_CGROUP_ID = 21
INET_DIAG_INFO = 2
INET_DIAG_REQ_BYTECODE = 1
NLMSG_DONE = 3
NLMSG_ERROR = 2
NLM_F_ACK = 4
NLM_F_DUMP = 0x300
NLM_F_REQUEST = 1
SOCK_DESTROY = 21
SOCK_DIAG_BY_FAMILY = 20
TCPDIAG_GETSOCK = 18

SOCKETS = (SOCK_DIAG_BY_FAMILY, TCPDIAG_GETSOCK)
"""Kinds of messages that hold one socket: of an answer, its question's."""
ALL_STATES = 0xFFF
"""Masks are of 1 << state."""
LISTEN_STATES = 1 << 10
LIVE_STATES = ALL_STATES & ~(1 << 6)
"""All but TIME_WAIT, which no program has a descriptor of."""
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
"""TCP states of net/tcp_states.h, spelled as ss(8) does."""

_NLMSGHDR = struct.Struct("=IHHII")
_NLATTR = struct.Struct("=HH")
_ERROR = struct.Struct("=i")
# inet_diag_req_v2: family, protocol, extensions, pad, states; then inet_diag_sockid.
_REQUEST = struct.Struct("=BBBBI")
# inet_diag_req: family, two prefix lengths, extensions, inet_diag_sockid, states, tables.
_REQUEST_V1 = struct.Struct("=B2xB48xI4x")
# inet_diag_sockid: ports, addresses, interface, cookie as two words, the low one first.
_SOCKID = struct.Struct("!HH16s16s")
_SOCKID_TAIL = struct.Struct("=III")
# inet_diag_msg: family, state, timer, retransmits; inet_diag_sockid; expires, rqueue, wqueue,
# uid, inode.
_BODY = _NLMSGHDR.size
SPORT_OFFSET = _BODY + 4
DPORT_OFFSET = SPORT_OFFSET + 2
_TAIL = struct.Struct("=IQ12xII")
_TAIL_OFFSET = SPORT_OFFSET + _SOCKID.size
_ATTRIBUTES_OFFSET = _TAIL_OFFSET + _TAIL.size
# Length and kind of the netlink header, and the cookie: all that a list of cookies takes.
_GLANCE = struct.Struct(f"=IH{_TAIL_OFFSET + 4 - 6}xQ")
# tcp_info: last_data_sent and last_data_recv in milliseconds, rtt in microseconds, total_retrans;
# max_pacing_rate (Linux 3.15), bytes_acked and bytes_received (Linux 4.1), delivery_rate (4.9).
_TCP_INFO = struct.Struct("=44xI4xI12xI28xI8xQQQ24xQ")


@dataclass(frozen=True, slots=True)
class TcpSocket:
    """One TCP socket of a network namespace; IPv4-mapped addresses are unmapped."""

    family: int
    state: int
    local: Endpoint
    peer: Endpoint
    """Port 0: a listener, which has no peer."""
    cookie: int
    uid: int
    inode: int
    """0 while no file holds the socket: not accepted yet, or closed and still sending."""
    interface: int = 0
    """Index of the device that the socket is bound to, or 0."""
    rtt_us: int = 0
    """This and what follows is 0 unless it was asked for."""
    retransmits: int = 0
    bytes_acked: int = 0
    bytes_received: int = 0
    idle_ms: int = 0
    """Since payload was last sent or received."""
    max_pacing_rate: int = 0
    """Bytes per second; all ones when there is no limit."""
    delivery_rate: int = 0
    """Bytes per second, as the peer acknowledged them when there last was much to send."""

    @property
    def state_name(self) -> str:
        return STATE_NAMES.get(self.state, str(self.state))


def pack_dump(states: int, source_ports: PortRange | None, *, info: bool) -> bytes:
    """A request for all sockets in these states, with local ports in the range.

    TCPDIAG_GETSOCK, the request of before Linux 3.3, is for all families at once. The kernel walks
    its whole table per request, 1.3 ms for 262,144 buckets however few the sockets, and
    SOCK_DIAG_BY_FAMILY would have it do so twice.
    """
    extensions = 1 << (INET_DIAG_INFO - 1) if info else 0
    body = _REQUEST_V1.pack(socket.AF_UNSPEC, extensions, states)
    if source_ports is not None:
        body += _port_condition(source_ports)
    return _message(TCPDIAG_GETSOCK, NLM_F_REQUEST | NLM_F_DUMP, body)


def pack_lookup(family: int, local: Endpoint, peer: Endpoint | None, cookie: int) -> bytes:
    """A request for the one socket; `peer` is None for a listener."""
    body = _exact(family, local, peer, cookie, 0)
    return _message(SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST, body)


def pack_destroy(found: TcpSocket, sequence: int = 1) -> bytes:
    """A request to end the socket, to be acknowledged under the sequence number."""
    peer = found.peer if found.peer.port else None
    body = _exact(found.family, found.local, peer, found.cookie, found.interface)
    return _message(SOCK_DESTROY, NLM_F_REQUEST | NLM_F_ACK, body, sequence)


def unpack_cookies(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Offset, length and SO_COOKIE of each socket in a datagram."""
    unpack, offset, last = _GLANCE.unpack_from, 0, len(data) - _GLANCE.size
    while offset <= last:
        length, kind, cookie = unpack(data, offset)
        if kind not in SOCKETS:
            return
        yield offset, length, cookie
        offset += (length + 3) & ~3


def unpack_socket(
    data: bytes, offset: int, length: int, addresses: dict[bytes, Address]
) -> TcpSocket:
    """The socket at the offset. `addresses` remembers those of a dump: few, and slow to build."""
    family, state = data[offset + _BODY], data[offset + _BODY + 1]
    sport, dport, source, destination = _SOCKID.unpack_from(data, offset + SPORT_OFFSET)
    interface, cookie, uid, inode = _TAIL.unpack_from(data, offset + _TAIL_OFFSET)
    width = 4 if family == socket.AF_INET else 16
    return TcpSocket(
        family,
        state,
        Endpoint(_address(source[:width], addresses), sport),
        Endpoint(_address(destination[:width], addresses), dport),
        cookie,
        uid,
        inode,
        interface,
        *_unpack_info(data, offset + _ATTRIBUTES_OFFSET, offset + length),
    )


class Figures(NamedTuple):
    """What changes about a socket while it lives; as TcpSocket has it."""

    state: int
    rtt_us: int
    retransmits: int
    bytes_acked: int
    bytes_received: int
    delivery_rate: int


def unpack_figures(data: bytes, offset: int, length: int) -> Figures:
    """Of the socket at the offset, at half the cost of unpack_socket."""
    rtt_us, retransmits, acked, received, _, _, rate = _unpack_info(
        data, offset + _ATTRIBUTES_OFFSET, offset + length
    )
    return Figures(data[offset + _BODY + 1], rtt_us, retransmits, acked, received, rate)


def unpack_cgroup(data: bytes, offset: int, length: int) -> int:
    """INET_DIAG_CGROUP_ID of the socket at the offset: the cgroup v2 of its birth; 0: unknown."""
    at, end = offset + _ATTRIBUTES_OFFSET, offset + length
    while at + _NLATTR.size <= end:
        size, kind = _NLATTR.unpack_from(data, at)
        if kind == INET_DIAG_CGROUP_ID and size == _NLATTR.size + 8:
            return int.from_bytes(data[at + _NLATTR.size : at + size], sys.byteorder)
        at += max((size + 3) & ~3, _NLATTR.size)
    return 0


def unpack_kind(data: bytes) -> int:
    """The kind of the first message in a datagram."""
    kind: int = _NLMSGHDR.unpack_from(data)[1]
    return kind


def unpack_sequence(data: bytes) -> int:
    """The sequence number of the request that the first message in a datagram answers."""
    sequence: int = _NLMSGHDR.unpack_from(data)[3]
    return sequence


def unpack_error(data: bytes) -> int:
    """The errno in a NLMSG_ERROR or NLMSG_DONE message; 0 is success."""
    code: int = _ERROR.unpack_from(data, _BODY)[0]
    return -code


def _message(kind: int, flags: int, body: bytes, sequence: int = 1) -> bytes:
    return _NLMSGHDR.pack(_NLMSGHDR.size + len(body), kind, flags, sequence, 0) + body


def _exact(
    family: int, local: Endpoint, peer: Endpoint | None, cookie: int, interface: int
) -> bytes:
    return (
        _REQUEST.pack(family, socket.IPPROTO_TCP, 0, 0, ALL_STATES)
        + _SOCKID.pack(
            local.port,
            peer.port if peer else 0,
            _packed(local, family),
            _packed(peer, family) if peer else b"",
        )
        + _SOCKID_TAIL.pack(interface, cookie & 0xFFFFFFFF, cookie >> 32)
    )


def _packed(endpoint: Endpoint, family: int) -> bytes:
    packed = endpoint.address.packed
    if family == socket.AF_INET6 and len(packed) == 4:
        return b"\0" * 10 + b"\xff\xff" + packed
    return packed


def _port_condition(ports: PortRange) -> bytes:
    """Byte code of inet_diag_bc_op: source port >= first and <= last.

    Each operation has its port in the operation behind it and jumps forward by `yes` or `no`
    bytes; a jump to 4 bytes behind the end of the program refuses the socket.
    """
    operation = struct.Struct("=BBH")
    code = (
        operation.pack(INET_DIAG_BC_S_GE, 8, 20)
        + operation.pack(0, 0, ports.first)
        + operation.pack(INET_DIAG_BC_S_LE, 8, 12)
        + operation.pack(0, 0, ports.last)
    )
    return _NLATTR.pack(_NLATTR.size + len(code), INET_DIAG_REQ_BYTECODE) + code


def _address(packed: bytes, known: dict[bytes, Address]) -> Address:
    address = known.get(packed)
    if address is None:
        address = known[packed] = unmapped(ipaddress.ip_address(packed))
    return address


def _unpack_info(data: bytes, offset: int, end: int) -> tuple[int, int, int, int, int, int, int]:
    """What TcpSocket has of the INET_DIAG_INFO attribute, from rtt_us on; zeros without one."""
    while offset + _NLATTR.size <= end:
        length, kind = _NLATTR.unpack_from(data, offset)
        if kind == INET_DIAG_INFO and length >= _NLATTR.size + _TCP_INFO.size:
            sent_ms, received_ms, rtt_us, retransmits, pacing, acked, received, rate = (
                _TCP_INFO.unpack_from(data, offset + _NLATTR.size)
            )
            return rtt_us, retransmits, acked, received, min(sent_ms, received_ms), pacing, rate
        offset += max((length + 3) & ~3, _NLATTR.size)
    return 0, 0, 0, 0, 0, 0, 0
