"""Addresses, ports and networks as values; how they are written and read.

Inside Slim an address is an `ipaddress` object, never text; an IPv4-mapped IPv6 address
(RFC 4291, 2.5.5.2) is unmapped at the border, so that one host has one value.
"""

from __future__ import annotations

import functools
import ipaddress
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

MAX_PORT = 65535
KNOWN_ADDRESSES = 4096
"""How many of the last addresses are kept: making one anew takes microseconds in a trapped call."""


def unmapped(address: Address) -> Address:
    """The IPv4 address inside an IPv4-mapped IPv6 address; any other address unchanged."""
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def parse_address(text: str) -> Address:
    """Read one IP address; ValueError says what is wrong with it."""
    if "%" in text:
        # A zone (RFC 4007) would be lost in `packed16`.
        raise ValueError(f"{text!r}: an address with a zone is of no use here")
    return unmapped(ipaddress.ip_address(text))


def packed16(address: Address) -> bytes:
    """The address as 16 bytes, IPv4 in its IPv4-mapped form."""
    if isinstance(address, ipaddress.IPv4Address):
        return b"\0" * 10 + b"\xff\xff" + address.packed
    return address.packed


@functools.lru_cache(KNOWN_ADDRESSES)
def from_packed16(raw: bytes) -> Address:
    """The reverse of `packed16`."""
    return unmapped(ipaddress.IPv6Address(raw))


@dataclass(frozen=True, slots=True, order=True)
class Endpoint:
    """One address and port, printed as `10.0.0.7:5432` or `[fd00::7]:5432`."""

    address: Address
    port: int

    def __post_init__(self) -> None:
        if not 0 <= self.port <= MAX_PORT:
            raise ValueError(f"port {self.port} is not between 0 and {MAX_PORT}")

    def __str__(self) -> str:
        if self.address.version == 6:
            return f"[{self.address}]:{self.port}"
        return f"{self.address}:{self.port}"

    @classmethod
    def parse(cls, text: str) -> Endpoint:
        """Read `address:port` or `[address]:port`; ValueError says what is wrong."""
        host, separator, port = text.rpartition(":")
        if not separator or not port.isascii() or not port.isdigit():
            raise ValueError(f"{text!r} is not address:port")
        bracketed = host.startswith("[") and host.endswith("]")
        if bracketed:
            host = host[1:-1]
        if bracketed != (":" in host):
            raise ValueError(f"{text!r}: write address:port, and an IPv6 one as [address]:port")
        return cls(parse_address(host), int(port))


@dataclass(frozen=True, slots=True)
class PortRange:
    """Ports `first` to `last`, both included, printed as `20000-29999`."""

    first: int
    last: int

    def __post_init__(self) -> None:
        if not 1 <= self.first <= self.last <= MAX_PORT:
            raise ValueError(f"{self.first}-{self.last} is not a range of ports")

    def __str__(self) -> str:
        return f"{self.first}-{self.last}"

    def __contains__(self, port: int) -> bool:
        return self.first <= port <= self.last

    def overlaps(self, other: PortRange) -> bool:
        return self.first <= other.last and other.first <= self.last

    @classmethod
    def parse(cls, text: str) -> PortRange:
        """Read `first-last`; ValueError says what is wrong."""
        first, separator, last = text.partition("-")
        if not separator or not (
            text.isascii() and first.strip().isdigit() and last.strip().isdigit()
        ):
            raise ValueError(f"{text!r} is not first-last, for example 20000-29999")
        return cls(int(first), int(last))


def contains_any(networks: tuple[Network, ...], address: Address) -> bool:
    """Whether one of the networks holds the address (families compare as different)."""
    return any(address in network for network in networks)


PORT_LABEL = "port.slim/"
"""A workload declares that it calls a port `http` by the label `port.slim/http`, its number."""


def named_ports(labels: Mapping[str, str]) -> dict[str, int]:
    """The TCP ports that a workload declares by name; ValueError if one is no number of a port."""
    found = {}
    for key, value in labels.items():
        if key.startswith(PORT_LABEL):
            number = int(value) if value.isascii() and value.isdigit() else 0
            if not 0 < number <= MAX_PORT:
                raise ValueError(f"label {key}={value}: that is no port")
            found[key.removeprefix(PORT_LABEL)] = number
    return found
