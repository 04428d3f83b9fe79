"""What an overlay is: its networks, its number, its MTU; pure, nothing here asks the kernel.

Two hosts are on one overlay when VNI, port and networks agree; the subnet is each host's own.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from slim.broker.endpoints import MAX_PORT, Address, Network
from slim.broker.errors import ConfigError

VXLAN_PORT = 4789
"""RFC 7348, section 8."""
MAX_VNI = (1 << 24) - 1
MAX_NAME = 63
_NAME = re.compile(r"[a-z0-9-]{1,63}")
# IFNAMSIZ of linux/if.h, less the zero at the end.
_MAX_DEVICE_NAME = 15

# An inner Ethernet header, 8 bytes each of VXLAN and UDP, and the outer IP header.
_OVERHEAD = {4: 14 + 8 + 8 + 20, 6: 14 + 8 + 8 + 40}
# The least that IPv4 hosts must take (RFC 791), and the least that IPv6 links must (RFC 8200).
_LEAST_MTU = {4: 576, 6: 1280}


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """One address family of an overlay."""

    network: Network
    """The whole overlay's; on-link for every container."""
    subnet: Network
    """This host's part of it, which no other host has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OverlayRequest:
    """An overlay as somebody asked for it."""

    name: str
    segments: tuple[Segment, ...]
    underlay: Address
    """The host's own address that other hosts send to."""
    vni: int | None = None
    """None: from the name."""
    mtu: int | None = None
    """None: from the device that has the underlay address."""
    port: int = VXLAN_PORT


@dataclass(frozen=True, slots=True, kw_only=True)
class OverlaySettings:
    """An overlay as it is made."""

    name: str
    segments: tuple[Segment, ...]
    underlay: Address
    vni: int
    mtu: int
    port: int

    @property
    def bridge(self) -> str:
        return device_name("sb-", self.name)

    @property
    def vxlan(self) -> str:
        return device_name("sx-", self.name)

    def describe(self) -> str:
        """For a message: what tells it from another overlay."""
        subnets = ", ".join(f"{one.subnet} of {one.network}" for one in self.segments)
        return f"{subnets}, underlay {self.underlay}:{self.port}, VNI {self.vni}, MTU {self.mtu}"

    def segment_of(self, address: Address) -> Segment | None:
        return next((one for one in self.segments if address in one.network), None)

    def prefix_length(self, address: Address) -> int:
        """What a container writes behind its address: all of the overlay is on-link."""
        return next(one.network.prefixlen for one in self.segments if address in one.network)


def check_name(name: str) -> None:
    """ConfigError unless it can name an overlay; such a name is safe in a file's name."""
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{name!r} is not a name for an overlay",
            hint=f"up to {MAX_NAME} of a-z, 0-9 and '-'",
        )


def check_request(request: OverlayRequest) -> None:
    """ConfigError for what no kernel need be asked about."""
    check_name(request.name)
    if not request.segments:
        raise ConfigError("an overlay needs a network", hint="give --network or --network6")
    if len({segment.network.version for segment in request.segments}) < len(request.segments):
        raise ConfigError("an overlay has one network of each family at most")
    for segment in request.segments:
        _check_segment(segment, request.underlay)
    check_host(request.underlay)
    if request.vni is not None and not 1 <= request.vni <= MAX_VNI:
        raise ConfigError(f"VNI {request.vni} is not between 1 and {MAX_VNI}")
    if not 1 <= request.port <= MAX_PORT:
        raise ConfigError(f"port {request.port} is not between 1 and {MAX_PORT}")


def check_host(address: Address) -> None:
    """ConfigError unless hosts can send to each other at such an address."""
    if address.is_unspecified or address.is_multicast or address.is_loopback:
        raise ConfigError(f"{address} is no address that other hosts can send to")
    if address.version == 6 and address.is_link_local:
        raise ConfigError(
            f"{address} is link-local and says nothing without a device",
            hint="give the host's address in the underlay network",
        )


def settle(request: OverlayRequest, underlay_mtu: int | None) -> OverlaySettings:
    """Fill in what was left open; `underlay_mtu` is None where nothing limits it.

    Outer packets must not be fragmented (RFC 7348, 4.3), so the overhead has to fit in.
    """
    most = MAX_PORT if underlay_mtu is None else underlay_mtu - _OVERHEAD[request.underlay.version]
    mtu = most if request.mtu is None else request.mtu
    if mtu > most:
        raise ConfigError(
            f"MTU {mtu} is more than {most}, which is what the underlay has room for",
            hint="leave --mtu out, or raise the MTU of the underlay's device first",
        )
    least = max(_LEAST_MTU[segment.network.version] for segment in request.segments)
    if mtu < least:
        raise ConfigError(
            f"MTU {mtu} is less than {least}, the least that the overlay's networks need",
            hint="raise the MTU of the underlay's device" if request.mtu is None else "",
        )
    return OverlaySettings(
        name=request.name,
        segments=request.segments,
        underlay=request.underlay,
        vni=request.vni or vni_of(request.name),
        mtu=mtu,
        port=request.port,
    )


def fits(request: OverlayRequest, settings: OverlaySettings) -> bool:
    """Whether that overlay is what was asked for; what was left open fits anything."""
    return (
        (request.name, request.segments, request.underlay, request.port)
        == (settings.name, settings.segments, settings.underlay, settings.port)
        and request.vni in (None, settings.vni)
        and request.mtu in (None, settings.mtu)
    )


def vni_of(name: str) -> int:
    """1 to MAX_VNI, from the name: the same on every host, and always will be."""
    return 1 + digest(name) % MAX_VNI


def device_name(prefix: str, name: str) -> str:
    """A name for a network device: at most 15 bytes, readable where the overlay's name is short."""
    plain = prefix + name
    if len(plain) <= _MAX_DEVICE_NAME:
        return plain
    # Six letters of the name and 24 bits of its digest.
    tail = f"{digest(name) & 0xFFFFFF:06x}"
    return f"{plain[: _MAX_DEVICE_NAME - len(tail)]}{tail}"


def _check_segment(segment: Segment, underlay: Address) -> None:
    network, subnet = segment.network, segment.subnet
    if network.version != subnet.version or not _is_inside(subnet, network):
        raise ConfigError(
            f"the subnet {subnet} is not inside the network {network}",
            hint="each host has a subnet of its own, a part of the overlay's network",
        )
    if network.is_multicast or network.is_loopback or network.is_link_local:
        raise ConfigError(f"{network} does not hold addresses for containers")
    if underlay in network:
        raise ConfigError(
            f"the overlay's network {network} holds the underlay address {underlay}",
            hint="choose a network that the hosts do not use themselves",
        )


def _is_inside(subnet: Network, network: Network) -> bool:
    return (
        subnet.version == network.version
        and subnet.network_address in network
        and subnet.broadcast_address in network
    )


def digest(text: str) -> int:
    """64 bits of a hash that is the same on every host and in every version."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())
