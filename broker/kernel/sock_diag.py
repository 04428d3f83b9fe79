"""TCP sockets as the kernel lists them: sock_diag(7) over netlink, by hand.

Used beside trapped calls and for tables of many thousand sockets: no netlink library, and nothing
is built that was not asked for. A netlink socket belongs to the network namespace that its thread
was in; so does all that it lists, destroys and reports. Counterpart: inet_diag, the messages.
"""

from __future__ import annotations

import ctypes
import errno
import socket
from typing import TYPE_CHECKING

from slim.broker.endpoints import Address, Endpoint, PortRange, parse_address
from slim.broker.kernel.inet_diag import (
    ALL_STATES,
    DPORT_OFFSET,
    LISTEN_STATES,
    LIVE_STATES,
    SOCKETS,
    SPORT_OFFSET,
    STATE_NAMES,
    Figures,
    TcpSocket,
    pack_destroy,
    pack_dump,
    pack_lookup,
    unpack_cgroup,
    unpack_cookies,
    unpack_error,
    unpack_figures,
    unpack_kind,
    unpack_sequence,
    unpack_socket,
)
from slim.broker.kernel.libc import syscall_error

if TYPE_CHECKING:
    from collections.abc import Container, Iterator, Sequence

__all__ = [
    "ALL_STATES",
    "LISTEN_STATES",
    "LIVE_STATES",
    "STATE_NAMES",
    "Figures",
    "ListenerDeaths",
    "TcpSocket",
    "can_destroy",
    "cookies_alive",
    "destroy_many",
    "destroy_tcp",
    "dump_figures",
    "dump_tcp",
    "find_tcp",
]

# From linux/netlink.h and linux/sock_diag.h.
NETLINK_ADD_MEMBERSHIP = 1
NETLINK_SOCK_DIAG = 4
SKNLGRP_INET6_TCP_DESTROY = 3
SKNLGRP_INET_TCP_DESTROY = 1
SOL_NETLINK = 270
SO_ATTACH_FILTER = 26

_RECEIVE_BYTES = 1 << 17
_DESTROY_BATCH = 64
"""Acknowledgements that are in the netlink socket's queue at once."""
_GONE = (errno.ENOENT, errno.ESTALE)


def dump_tcp(
    *,
    states: int = ALL_STATES,
    source_ports: PortRange | None = None,
    info: bool = False,
    cookies: Container[int] | None = None,
) -> list[TcpSocket]:
    """TCPDIAG_GETSOCK dump, Linux 2.6.14: TCP sockets in the states (a mask of 1 << state).

    With `source_ports` the kernel leaves out all others (INET_DIAG_REQ_BYTECODE); with `cookies`
    we do, which is cheap beside unpacking them. A socket that is neither connected nor listening
    is in no table of the kernel and never shows.
    """
    addresses: dict[bytes, Address] = {}
    return [
        unpack_socket(data, offset, length, addresses)
        for data in _dump(states, source_ports, info=info)
        for offset, length, cookie in unpack_cookies(data)
        if cookies is None or cookie in cookies
    ]


def cookies_alive(*, states: int = ALL_STATES, source_ports: PortRange | None = None) -> set[int]:
    """TCPDIAG_GETSOCK dump, Linux 2.6.14: SO_COOKIE of TCP sockets, nothing else unpacked.

    By default of all of them, listeners included. A closed connection keeps its cookie for the
    minute that it spends in TIME_WAIT.
    """
    return {
        cookie
        for data in _dump(states, source_ports, info=False)
        for _, _, cookie in unpack_cookies(data)
    }


def dump_figures(cookies: Container[int], *, states: int = LIVE_STATES) -> dict[int, Figures]:
    """TCPDIAG_GETSOCK dump with INET_DIAG_INFO, Linux 4.9: figures of those sockets, by cookie."""
    return {
        cookie: unpack_figures(data, offset, length)
        for data in _dump(states, None, info=True)
        for offset, length, cookie in unpack_cookies(data)
        if cookie in cookies
    }


def dump_cgroups(cgroups: Container[int]) -> list[tuple[int, TcpSocket]]:
    """TCPDIAG_GETSOCK dump, with cgroup ids from Linux 5.8: (cgroup, socket) of those cgroups.

    A cgroup's id is its directory's inode number. As with dump_tcp, fresh sockets never show.
    """
    found = []
    for data in _dump(ALL_STATES, None, info=False):
        for offset, length, _ in unpack_cookies(data):
            cgroup = unpack_cgroup(data, offset, length)
            if cgroup in cgroups:
                found.append((cgroup, unpack_socket(data, offset, length, {})))
    return found


def find_tcp(cookie: int, local: Endpoint, peer: Endpoint | None) -> TcpSocket | None:
    """SOCK_DIAG_BY_FAMILY lookup, Linux 3.3: the socket with that cookie and those addresses.

    For a listener `peer` is None. None when it is gone. A listener bound in an AF_INET6 socket to
    a mapped address is found as well.
    """
    families = (
        (socket.AF_INET, socket.AF_INET6) if local.address.version == 4 else (socket.AF_INET6,)
    )
    with _open() as netlink:
        for family in families:
            netlink.send(pack_lookup(family, local, peer, cookie))
            data = netlink.recv(_RECEIVE_BYTES)
            if unpack_kind(data) in SOCKETS:
                return unpack_socket(data, 0, len(data), {})
            code = unpack_error(data)
            if code not in _GONE:
                raise syscall_error("sock_diag", str(local), code)
    return _find_listener(cookie, local.port) if peer is None else None


def destroy_tcp(found: TcpSocket) -> bool:
    """SOCK_DESTROY, Linux 4.5: ECONNABORTED here, RST to the peer. False: it was gone already.

    Needs CAP_NET_ADMIN and a kernel with INET_DIAG_DESTROY (else EOPNOTSUPP).
    """
    with _open() as netlink:
        netlink.send(pack_destroy(found))
        code = unpack_error(netlink.recv(_RECEIVE_BYTES))
    is_listener = found.peer.port == 0
    if code in _GONE and not (is_listener and _find_listener(found.cookie, found.local.port)):
        return False
    if code:
        raise syscall_error("sock_diag(SOCK_DESTROY)", f"{found.local} to {found.peer}", code)
    return True


def destroy_many(found: Sequence[TcpSocket]) -> set[int]:
    """SOCK_DESTROY, Linux 4.5, of connections: the cookies of those that were still there.

    As destroy_tcp, at a tenth of its cost. The kernel looks for address pair and cookie, so a
    connection that took the place of one listed before is never meant.
    """
    ended: set[int] = set()
    with _open() as netlink:
        for start in range(0, len(found), _DESTROY_BATCH):
            batch = found[start : start + _DESTROY_BATCH]
            netlink.send(b"".join(map(pack_destroy, batch, range(len(batch)))))
            for _ in batch:
                data = netlink.recv(_RECEIVE_BYTES)
                sock, code = batch[unpack_sequence(data)], unpack_error(data)
                if not code:
                    ended.add(sock.cookie)
                elif code not in _GONE:
                    subject = f"{sock.local} to {sock.peer}"
                    raise syscall_error("sock_diag(SOCK_DESTROY)", subject, code)
    return ended


def can_destroy() -> bool:
    """SOCK_DESTROY, Linux 4.5: whether this kernel was built with INET_DIAG_DESTROY.

    Asked of a connection that cannot be: without it the kernel does not even look for it.
    """
    nowhere = Endpoint(parse_address("127.0.0.1"), 1)
    with _open() as netlink:
        netlink.send(pack_destroy(TcpSocket(socket.AF_INET, 1, nowhere, nowhere, 1, 0, 0)))
        return unpack_error(netlink.recv(_RECEIVE_BYTES)) != errno.EOPNOTSUPP


def _find_listener(cookie: int, port: int) -> TcpSocket | None:
    """A listener by its cookie alone.

    Of a SO_REUSEPORT group the exact lookup sees one member, which is seldom the one meant.
    """
    listeners = dump_tcp(states=LISTEN_STATES, source_ports=PortRange(port, port))
    return next((found for found in listeners if found.cookie == cookie), None)


def _open() -> socket.socket:
    netlink = socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_SOCK_DIAG
    )
    # A connected netlink socket takes unicast messages from the kernel (port id 0) only.
    netlink.connect((0, 0))
    return netlink


def _dump(states: int, source_ports: PortRange | None, *, info: bool) -> Iterator[bytes]:
    """The datagrams of a dump."""
    with _open() as netlink:
        netlink.send(pack_dump(states, source_ports, info=info))
        while unpack_kind(data := netlink.recv(_RECEIVE_BYTES)) in SOCKETS:
            yield data
        # NLMSG_DONE comes in a datagram of its own.
        code = unpack_error(data)
        if code:
            raise syscall_error("sock_diag", "dump", code)


class ListenerDeaths:
    """SKNLGRP_INET_TCP_DESTROY, Linux 4.4: tells when listeners on the ports are closed for good.

    A filter in the kernel (SO_ATTACH_FILTER) passes only sockets with a local port in the range
    and no peer, so that no other socket's end on this host wakes anybody. The event comes 0.1 ms
    after the last copy was closed. Owns its fd; needs CAP_NET_ADMIN.
    """

    def __init__(self, ports: PortRange) -> None:
        self.overflowed = False
        """Events were lost: look for yourself (cookies_alive), then set it to False."""
        self._netlink = _open()
        try:
            # Named, so that its memory lives until the kernel has copied the program.
            program = _port_filter(ports)
            # Before the membership, so that no unfiltered event is ever queued.
            self._netlink.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, bytes(program))
            for group in (SKNLGRP_INET_TCP_DESTROY, SKNLGRP_INET6_TCP_DESTROY):
                self._netlink.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group)
            self._netlink.setblocking(False)
        except OSError as error:
            self._netlink.close()
            subject = f"ends of listeners on ports {ports} (takes CAP_NET_ADMIN)"
            raise syscall_error("sock_diag multicast", subject, error.errno or 0) from None

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
            found.extend(cookie for _, _, cookie in unpack_cookies(data))


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
    program = (_sock_filter * 7)(
        _sock_filter(load_half, 0, 0, SPORT_OFFSET),
        _sock_filter(jump_ge, 0, 4, ports.first),
        _sock_filter(jump_gt, 3, 0, ports.last),
        _sock_filter(load_half, 0, 0, DPORT_OFFSET),
        _sock_filter(jump_eq, 0, 1, 0),
        _sock_filter(ret, 0, 0, 0xFFFF),
        _sock_filter(ret, 0, 0, 0),
    )
    return _sock_fprog(7, program)
