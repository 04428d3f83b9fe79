"""Which addresses, names and MAC addresses a container on an overlay gets; pure."""

from __future__ import annotations

from dataclasses import replace
from itertools import count
from typing import TYPE_CHECKING

from slim.broker.errors import ConfigError, SlimError
from slim.broker.overlay.settings import digest

if TYPE_CHECKING:
    from collections.abc import Collection

    from slim.broker.endpoints import Address, Network
    from slim.broker.overlay.settings import OverlaySettings, Segment
    from slim.broker.overlay.state import OverlayState


def choose_addresses(
    state: OverlayState, asked: tuple[Address, ...]
) -> tuple[OverlayState, tuple[Address, ...]]:
    """One address of each segment: the one asked for, or the next free one, which the state
    then remembers."""
    settings, left = state.settings, list(asked)
    chosen: list[Address] = []
    for segment in settings.segments:
        own = [address for address in left if address.version == segment.network.version]
        if len(own) > 1:
            raise ConfigError(f"{own[0]} and {own[1]}: one address of each family is enough")
        if own:
            left.remove(own[0])
            _check_address(state, segment, own[0])
            chosen.append(own[0])
        else:
            state, picked = _pick(state, segment)
            chosen.append(picked)
    if left:
        raise ConfigError(
            f"overlay {settings.name} has no IPv{left[0].version} network for {left[0]}",
            hint=f"it is {settings.describe()}",
        )
    return state, tuple(chosen)


def pick_address(
    subnet: Network, taken: Collection[Address], last: Address | None
) -> Address | None:
    """The next free address behind `last`, round the subnet; None when all are taken.

    Round, so that an address that was given back rests as long as it can: other hosts may
    remember whose it was.
    """
    first, final = _usable(subnet)
    span = final - first + 1
    start = int(last) - first if last is not None and last in subnet else -1
    kind = type(subnet.network_address)
    # Of any len(taken) + 1 addresses one is free.
    for step in range(1, min(span, len(taken) + 1) + 1):
        address = kind(first + (start + step) % span)
        if address not in taken:
            return address
    return None


def is_usable(subnet: Network, address: Address) -> bool:
    """Whether a container may have it: in the subnet, not its network or broadcast address."""
    first, final = _usable(subnet)
    return address.version == subnet.version and first <= int(address) <= final


def port_name(settings: OverlaySettings, address: Address) -> str:
    """The host's end of a container's device, by the container's first address."""
    return f"sc-{digest(f'{settings.name} {address}') & 0xFFFF_FFFF_FFFF:012x}"


def mac_of(settings: OverlaySettings, address: Address) -> str:
    """A locally administered MAC address, the same whenever the address is given out.

    So neighbours that remember an earlier container at the address are not wrong.
    """
    octets = (digest(f"{settings.name} {address}") & 0xFF_FFFF_FFFF).to_bytes(5)
    return ":".join(f"{octet:02x}" for octet in (0x02, *octets))


def free_interface(names: Collection[str]) -> str:
    """eth0, or the next one that the container does not have."""
    return next(name for name in (f"eth{number}" for number in count()) if name not in names)


def _check_address(state: OverlayState, segment: Segment, address: Address) -> None:
    if not is_usable(segment.subnet, address):
        raise ConfigError(
            f"{address} is not an address of this host's subnet {segment.subnet} for containers",
            hint="other hosts give out the rest of the network; leave the address out to get a "
            "free one",
        )
    holder = state.taken().get(address)
    if holder is not None:
        raise SlimError(
            f"{address} is taken by {holder.namespace or holder.device}",
            hint=f"slimctl overlay detach {state.settings.name} --ip {address} frees it",
        )


def _pick(state: OverlayState, segment: Segment) -> tuple[OverlayState, Address]:
    subnet = segment.subnet
    last = next((address for address in state.last if address in subnet), None)
    picked = pick_address(subnet, state.taken().keys(), last)
    if picked is None:
        raise SlimError(
            f"all addresses of {subnet} are taken on overlay {state.settings.name}",
            hint="detach a container, or create the overlay with a larger subnet",
        )
    others = tuple(address for address in state.last if address not in subnet)
    return replace(state, last=(*others, picked)), picked


def _usable(subnet: Network) -> tuple[int, int]:
    first, final = int(subnet.network_address), int(subnet.broadcast_address)
    if subnet.max_prefixlen - subnet.prefixlen < 2:
        return first, final
    # IPv6 has no broadcast; its first address is anycast to routers (RFC 4291, 2.6.1).
    return first + 1, final - 1 if subnet.version == 4 else final
