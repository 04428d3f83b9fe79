"""`struct sockaddr_in` and `sockaddr_in6` as bytes (ip(7), ipv6(7)), and back."""

from __future__ import annotations

import functools
import ipaddress
import socket
import struct
import sys

from slim.broker.endpoints import KNOWN_ADDRESSES, Address, Endpoint, from_packed16, unmapped

MAX_SOCKADDR = 128
"""sizeof(struct sockaddr_storage), the kernel's own limit."""

_FAMILY = struct.Struct("=H")
_IN = struct.Struct("!2xH4s8x")
_IN6 = struct.Struct("!2xH4x16s4x")
_NATIVE = sys.byteorder
_MAPPED = b"\0" * 10 + b"\xff\xff"


def family_of(raw: bytes) -> int:
    """The address family; AF_UNSPEC when there are too few bytes to name one."""
    return int.from_bytes(raw[:2], _NATIVE) if len(raw) >= 2 else socket.AF_UNSPEC


def decode(raw: bytes) -> Endpoint | None:
    """The endpoint in an IPv4 or IPv6 socket address (mapped ones unmapped); None for the rest.

    Lengths follow the kernel: 16 bytes for IPv4, at least 24 for IPv6 (SIN6_LEN_RFC2133).
    """
    family = family_of(raw)
    if family == socket.AF_INET and len(raw) >= _IN.size:
        port, packed = _IN.unpack_from(raw)
        return Endpoint(from_packed16(_MAPPED + packed), port)
    if family == socket.AF_INET6 and len(raw) >= 24:
        port, packed = struct.unpack_from("!2xH4x16s", raw)
        return Endpoint(from_packed16(packed), port)
    return None


def encode(endpoint: Endpoint, family: int) -> bytes:
    """The socket address of `family` for an endpoint; IPv4 in an AF_INET6 socket is mapped."""
    address = endpoint.address
    if family == socket.AF_INET6:
        packed = address.packed
        if len(packed) == 4:
            packed = _MAPPED + packed
        body = _IN6.pack(endpoint.port, packed)
    else:
        if not isinstance(address, ipaddress.IPv4Address):
            raise ValueError(f"{address} does not fit an IPv4 socket")
        body = _IN.pack(endpoint.port, address.packed)
    return _FAMILY.pack(family) + body[2:]


def for_python(endpoint: Endpoint, family: int) -> tuple[str, int]:
    """The address as the socket module takes it for a socket of that family."""
    address = endpoint.address
    if family == socket.AF_INET6 and address.version == 4:
        return f"::ffff:{address}", endpoint.port
    return str(address), endpoint.port


def from_python(name: tuple[str, int] | tuple[str, int, int, int]) -> Endpoint:
    """The endpoint that the socket module's getsockname() or accept() gave."""
    return Endpoint(_address(name[0]), name[1])


@functools.lru_cache(KNOWN_ADDRESSES)
def _address(text: str) -> Address:
    return unmapped(ipaddress.ip_address(text.partition("%")[0]))
