"""Single values of the configuration: from the text in the file to a name, a path, an address.

Every function takes the place of the value and raises the ConfigError that names it.
"""

from __future__ import annotations

import ipaddress
import os
import re
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from slim.broker.config_file import Place, open_regular, quoted
from slim.broker.endpoints import MAX_PORT, Address, Endpoint, Network, PortRange, parse_address

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

NETNS_DIRECTORY = Path("/run/netns")
"""Where ip-netns(8) keeps namespaces by name."""

MAX_RUN_DIR_BYTES = 90
"""sun_path has room for 107 bytes and a zero (unix(7)); our longest socket name takes 12."""

MAX_TEXT = 256
"""Of a workload's name, its namespace, a label's key or value; peers refuse longer ones."""

HOST_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?")
OVERLAY_NAME = re.compile(r"[a-z0-9-]{1,63}")
PLUGIN_NAME = re.compile(r"[A-Za-z0-9_.-]{1,63}")
MODULE_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", re.ASCII)
GROUP_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,31}")

_NETWORK = re.compile(r"[^/]+/\d{1,3}", re.ASCII)
_UNUSABLE: dict[str, tuple[Network, ...]] = {
    "unspecified": (ipaddress.ip_network("0.0.0.0/32"), ipaddress.ip_network("::/128")),
    "loopback": (ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("::1/128")),
    "link-local": (ipaddress.ip_network("169.254.0.0/16"), ipaddress.ip_network("fe80::/10")),
    "multicast": (ipaddress.ip_network("224.0.0.0/4"), ipaddress.ip_network("ff00::/8")),
    # Inside Slim these are IPv4 addresses, so that nothing is ever found in such a network.
    "IPv4-mapped": (ipaddress.ip_network("::ffff:0:0/96"),),
}


def check_name(place: Place, text: str, pattern: re.Pattern[str]) -> None:
    if not pattern.fullmatch(text):
        raise place.mistake(f"{quoted(text)} is not such a name")


def check_names(place: Place, names: Sequence[str], pattern: re.Pattern[str]) -> None:
    for name in names:
        check_name(place, name, pattern)
    check_unique(place, names)


def check_unique(place: Place, values: Sequence[object]) -> None:
    for index, value in enumerate(values):
        if value in values[:index]:
            raise place.mistake(f"{quoted(str(value))} is there twice", "leave one of them out")


def check_text(place: Place, text: str) -> None:
    """Text that goes to peers and into logs."""
    if len(text) > MAX_TEXT:
        raise place.mistake(f"{quoted(text)} is longer than {MAX_TEXT} characters")
    if not text.isprintable():
        raise place.mistake(f"{quoted(text)} has characters that cannot be printed")


def read_address(place: Place, text: str) -> Address:
    """One address of this host."""
    try:
        address = parse_address(text)
    except ValueError:
        raise place.mistake(f"{quoted(text)} is not an IP address") from None
    for kind, networks in _UNUSABLE.items():
        if any(address in network for network in networks):
            raise place.mistake(f"{address} is {kind}, other hosts cannot reach this one there")
    return address


def read_ports(place: Place, text: str) -> PortRange:
    try:
        return PortRange.parse(text)
    except ValueError:
        raise place.mistake(f"{quoted(text)} is not first-last, between 1 and {MAX_PORT}") from None


def read_listen(place: Place, text: str, addresses: Sequence[Address]) -> Endpoint:
    """An endpoint at one of the addresses, or at all of them."""
    try:
        endpoint = Endpoint.parse(text)
    except ValueError:
        raise place.mistake(f"{quoted(text)} is not address:port") from None
    if not (endpoint.address.is_unspecified or endpoint.address in addresses):
        raise place.mistake(f"{endpoint.address} is not among the addresses of [host]")
    if endpoint.port == 0:
        raise place.mistake("0 is not a port that others can connect to")
    return endpoint


def read_network(place: Place, text: str, hosts: Iterable[Address]) -> Network:
    """A network of an overlay, which none of the hosts is in."""
    try:
        # ipaddress also takes netmasks, and an address alone.
        if not _NETWORK.fullmatch(text):
            raise ValueError(text)
        interface = ipaddress.ip_interface(text)
    except ValueError:
        raise place.mistake(f"{quoted(text)} is not address/length") from None
    network = interface.network
    if network.network_address != interface.ip:
        raise place.mistake(f"{quoted(text)} has bits set behind its length", f'write "{network}"')
    for kind, unusable in _UNUSABLE.items():
        if any(network.version == other.version and network.overlaps(other) for other in unusable):
            raise place.mistake(
                f"{network} holds {kind} addresses", "write the overlay's own networks only"
            )
    for address in hosts:
        if address in network:
            raise place.mistake(
                f"{network} holds {address}, an address of this host",
                "addresses of [host] are the underlay's, networks of [[overlay]] the containers'",
            )
    return network


def check_disjoint(networks: Sequence[tuple[Place, str, Network]]) -> None:
    """The networks of all overlays, each with its place and the name of its overlay."""
    # Two networks are nested or disjoint. In this order one that holds another is followed by
    # one that it holds.
    ordered = sorted(
        networks, key=lambda it: (it[2].version, it[2].network_address.packed, it[2].prefixlen)
    )
    for (_, outer_name, outer), (place, name, network) in pairwise(ordered):
        if outer.version == network.version and outer.overlaps(network):
            raise place.mistake(
                f"{network} of {name!r} overlaps {outer} of {outer_name!r}",
                "an address can be in one network only: leave one of them out",
            )


def read_path(place: Place, text: str) -> Path:
    if not text or "\0" in text:
        raise place.mistake(f"{quoted(text)} is not a path")
    return Path(text)


def read_run_dir(place: Place, text: str) -> Path:
    path = read_path(place, text)
    if not path.is_absolute():
        raise place.mistake(f"{quoted(text)} is not an absolute path")
    if len(os.fsencode(path)) > MAX_RUN_DIR_BYTES:
        raise place.mistake(f"{quoted(text)} is longer than {MAX_RUN_DIR_BYTES} bytes")
    return path


def read_readable(place: Place, text: str) -> Path:
    """A file that can be read now; a relative path starts at the configuration's directory."""
    path = place.file.path.parent / read_path(place, text)
    try:
        open_regular(path).close()
    except OSError as error:
        raise place.mistake(f"cannot read {path}: {error.strerror}") from None
    return path


def read_netns(place: Place, text: str) -> Path:
    """A network namespace, given as a name under /run/netns or as an absolute path."""
    path = read_path(place, text)
    if path.is_absolute():
        return path
    if "/" in text or text in (".", ".."):
        raise place.mistake(f"{quoted(text)} is neither a name nor an absolute path")
    if text.isascii() and text.isdigit():
        # slim-run takes a number for a process id, which names nothing lasting.
        remedy = f'write "{NETNS_DIRECTORY / text}" if that is its name'
        raise place.mistake(f"{quoted(text)} is a process id, not a name", remedy)
    return NETNS_DIRECTORY / path
