"""Ethernet frames as a container might make them, each with a marker at its end."""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass

from slim.broker.overlay.source_guard import link_local_of

BROADCAST = b"\xff" * 6
ETH_IP, ETH_ARP, ETH_VLAN, ETH_IP6 = 0x0800, 0x0806, 0x8100, 0x86DD
ALL_NODES = socket.inet_pton(socket.AF_INET6, "ff02::1")
UDP, ICMP6 = 17, 58
ROUTER_ADVERT, NEIGHBOR_SOLICIT, NEIGHBOR_ADVERT, REDIRECT = 134, 135, 136, 137
ARP_REQUEST, ARP_REPLY = 1, 2


@dataclass(frozen=True)
class Sender:
    """What a container owns."""

    mac: str
    address4: str
    address6: str

    @property
    def link_local(self) -> str:
        return str(link_local_of(self.mac))


def _mac(text: str) -> bytes:
    return bytes(int(part, 16) for part in text.split(":"))


def _ether(mac: str, kind: int, payload: bytes) -> bytes:
    return BROADCAST + _mac(mac) + struct.pack("!H", kind) + payload


def udp4(mac: str, source: str, marker: bytes) -> bytes:
    length = 20 + 8 + len(marker)

    def header_with(checksum: int) -> bytes:
        fields = (0x45, 0, length, 0, 0, 64, UDP, checksum)
        return struct.pack("!BBHHHBBH4s4s", *fields, socket.inet_aton(source), BROADCAST[:4])

    # A bridge whose kernel has br_netfilter looks at the sum (RFC 1071).
    total = sum(struct.unpack("!10H", header_with(0)))
    header = header_with(~((total & 0xFFFF) + (total >> 16)) & 0xFFFF)
    return _ether(mac, ETH_IP, header + struct.pack("!HHHH", 9, 9, 8 + len(marker), 0) + marker)


def arp(mac: str, operation: int, sender_mac: str, sender: str, marker: bytes) -> bytes:
    body = struct.pack(
        "!HHBBH6s4s6s4s",
        *(1, ETH_IP, 6, 4, operation),
        _mac(sender_mac),
        socket.inet_aton(sender),
        BROADCAST,
        socket.inet_aton("10.77.1.200"),
    )
    return _ether(mac, ETH_ARP, body + marker)


def icmp6(mac: str, source: str, kind: int, target: str, marker: bytes) -> bytes:
    body = struct.pack("!BBHI", kind, 0, 0, 0) + socket.inet_pton(socket.AF_INET6, target) + marker
    return _ip6(mac, source, ICMP6, body)


def udp6(mac: str, source: str, marker: bytes) -> bytes:
    return _ip6(mac, source, UDP, struct.pack("!HHHH", 9, 9, 8 + len(marker), 0) + marker)


def _ip6(mac: str, source: str, protocol: int, body: bytes) -> bytes:
    packed = socket.inet_pton(socket.AF_INET6, source)
    header = struct.pack("!IHBB", 6 << 28, len(body), protocol, 255) + packed + ALL_NODES
    return _ether(mac, ETH_IP6, header + body)


def vlan(mac: str, inner: bytes) -> bytes:
    """The frame in a VLAN: what is inside is not looked at."""
    return _ether(mac, ETH_VLAN, struct.pack("!H", 7) + inner[12:])
