"""The IP addresses of a network namespace, and the source address its routes would pick.

rtnetlink(7) by hand: one dump, once per workload; a netlink library would cost slimd's start
more than the whole module.
"""

from __future__ import annotations

import ipaddress
import socket
import struct

from slim.broker.endpoints import Address, unmapped
from slim.broker.kernel.namespaces import in_namespace

# From linux/netlink.h, linux/rtnetlink.h, linux/if_addr.h.
IFA_ADDRESS = 1
IFA_LOCAL = 2
NLM_F_DUMP = 0x300
NLM_F_REQUEST = 1
NLMSG_DONE = 3
NLMSG_ERROR = 2
RTM_GETADDR = 22
RTM_NEWADDR = 20

_NLMSGHDR = struct.Struct("=IHHII")
_IFADDRMSG = struct.Struct("=BBBBI")
_RTATTR = struct.Struct("=HH")
_ANY_PORT = 9


def read_addresses(namespace: int) -> list[Address]:
    """RTM_GETADDR of rtnetlink(7), Linux 2.2: all addresses but loopback and link-local ones.

    Borrows the namespace's fd.
    """
    with in_namespace(namespace):
        netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
    with netlink:
        body = _IFADDRMSG.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
        header = _NLMSGHDR.pack(
            _NLMSGHDR.size + len(body), RTM_GETADDR, NLM_F_REQUEST | NLM_F_DUMP, 1, 0
        )
        netlink.send(header + body)
        found: list[Address] = []
        while True:
            data = netlink.recv(65536)
            if not _parse(data, found):
                return found


def _parse(data: bytes, found: list[Address]) -> bool:
    """Collect the addresses of one datagram; False after the last."""
    offset = 0
    while offset + _NLMSGHDR.size <= len(data):
        length, kind, _, _, _ = _NLMSGHDR.unpack_from(data, offset)
        if kind in (NLMSG_DONE, NLMSG_ERROR) or length < _NLMSGHDR.size:
            return False
        if kind == RTM_NEWADDR:
            address = _address_of(data, offset + _NLMSGHDR.size, offset + length)
            if address is not None and not (address.is_loopback or address.is_link_local):
                found.append(address)
        offset += (length + 3) & ~3
    return True


def _address_of(data: bytes, start: int, end: int) -> Address | None:
    offset = start + _IFADDRMSG.size
    values: dict[int, bytes] = {}
    while offset + _RTATTR.size <= end:
        length, kind = _RTATTR.unpack_from(data, offset)
        if length < _RTATTR.size:
            break
        values[kind] = data[offset + _RTATTR.size : offset + length]
        offset += (length + 3) & ~3
    # On a point-to-point link IFA_ADDRESS is the peer's; IFA_LOCAL is ours where it is given.
    packed = values.get(IFA_LOCAL) or values.get(IFA_ADDRESS)
    return unmapped(ipaddress.ip_address(packed)) if packed else None


def pick_source(namespace: int, destination: Address) -> Address | None:
    """connect(2) of a UDP socket, Linux 2.0: the address that the routing table picks; no packet.

    None: there is no route. Borrows the namespace's fd.
    """
    family = socket.AF_INET6 if destination.version == 6 else socket.AF_INET
    with in_namespace(namespace):
        probe = socket.socket(family, socket.SOCK_DGRAM)
    with probe:
        try:
            probe.connect((str(destination), _ANY_PORT))
        except OSError:
            return None
        return unmapped(ipaddress.ip_address(probe.getsockname()[0]))
