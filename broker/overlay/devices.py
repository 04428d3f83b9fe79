"""An overlay's devices on the host: whether there is room for them, and how they are made."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

from slim.broker.errors import ConfigError, SlimError
from slim.broker.overlay.allocation import mac_of
from slim.broker.overlay.links import open_links
from slim.broker.overlay.settings import settle

if TYPE_CHECKING:
    from collections.abc import Iterable

    from slim.broker.endpoints import Address
    from slim.broker.overlay.links import Link, Links
    from slim.broker.overlay.settings import OverlayRequest, OverlaySettings, Segment
    from slim.broker.overlay.state import Attachment, OverlayState


def settle_on_host(
    request: OverlayRequest, others: Iterable[OverlaySettings], links: Links
) -> OverlaySettings:
    """The settings for a new overlay; SlimError if this host has no room for it."""
    underlay = find_underlay(links, request.underlay)
    if underlay.is_loopback and request.mtu is None:
        raise ConfigError(
            f"{request.underlay} is on {underlay.name}, whose MTU says nothing about the wire",
            hint="give --mtu: that of the wire, less 50 (70 for an IPv6 underlay)",
        )
    settings = settle(request, None if underlay.is_loopback else underlay.mtu)
    for segment in settings.segments:
        _check_routes(segment, links)
        for other in others:
            _check_other(segment, other)
    for name in (settings.bridge, settings.vxlan):
        if name in links.names:
            raise SlimError(
                f"there is a device {name} already, which is not this overlay's",
                hint=f"remove it (ip link del {name}), or give the overlay another name",
            )
    holder = links.with_vni(settings.vni, settings.port)
    if holder is not None:
        raise SlimError(
            f"VNI {settings.vni} is taken on UDP port {settings.port}, by {holder.name}",
            hint="give --vni, the same on every host of the overlay",
        )
    return settings


def find_underlay(links: Links, address: Address) -> Link:
    """The host's device with the underlay address."""
    found = links.holding(address)
    if found is None:
        raise SlimError(
            f"the underlay address {address} is not on this host",
            hint="`ip addr` lists the host's addresses; is this the host's network namespace?",
        )
    return found


def make_devices(state: OverlayState, links: Links, undo: ExitStack) -> None:
    """Make what is missing, which on most calls is nothing; `undo` gets the reverse.

    A device is complete once it is up: that is the last thing that happens to it.
    """
    settings = state.settings
    bridge = _find_own(links, settings.bridge, "bridge", None)
    if bridge is None:
        links.add_bridge(settings.bridge, settings.mtu)
        undo.callback(links.remove, settings.bridge)
    if bridge is None or not bridge.is_up:
        links.start_bridge(settings.bridge)
    vxlan = _find_own(links, settings.vxlan, "vxlan", settings.vni)
    if vxlan is None:
        links.add_vxlan(settings)
        undo.callback(links.remove, settings.vxlan)
    if bridge is None or vxlan is None or not vxlan.is_up or vxlan.master != bridge.index:
        for peer in state.peers:
            links.add_peer(settings.vxlan, peer)
        # Also after somebody removed the bridge, and its ports with it.
        for one in without_dead(state, links.names).attachments:
            links.add_port(one.device, settings.bridge)
        links.add_port(settings.vxlan, settings.bridge)


def remove_devices(state: OverlayState, links: Links) -> None:
    """Remove all devices of the overlay, the containers' included; no error for what is gone."""
    settings = state.settings
    for one in state.attachments:
        links.remove(one.device)
    for name, kind in ((settings.vxlan, "vxlan"), (settings.bridge, "bridge")):
        found = links.find(name)
        # The name may have gone to somebody else's device while ours was away.
        if found is not None and found.kind == kind:
            links.remove(name)


def plug(attachment: Attachment, namespace: int, state: OverlayState, links: Links) -> None:
    """Give the namespace (its fd is borrowed) the attachment's device, or leave nothing."""
    settings, name = state.settings, attachment.interface
    with ExitStack() as undo, open_links(namespace) as inside:
        links.add_veth(
            attachment.device,
            peer=name,
            namespace=namespace,
            mac=mac_of(settings, attachment.addresses[0]),
            mtu=settings.mtu,
        )
        undo.callback(links.remove, attachment.device)
        for address in attachment.addresses:
            inside.add_address(name, address, settings.prefix_length(address))
        inside.bring_up("lo")
        inside.bring_up(name)
        links.add_port(attachment.device, settings.bridge)
        undo.pop_all()


def without_dead(state: OverlayState, devices: frozenset[str]) -> OverlayState:
    """The state without containers that are gone: with a namespace both ends of a veth go."""
    alive = tuple(one for one in state.attachments if one.device in devices)
    return state if alive == state.attachments else replace(state, attachments=alive)


def _find_own(links: Links, name: str, kind: str, vni: int | None) -> Link | None:
    found = links.find(name)
    if found is not None and (found.kind, found.vni) != (kind, vni):
        raise SlimError(
            f"the device {name} is not the {kind} that the overlay had",
            hint=f"remove it (ip link del {name}); the overlay's own is then made again",
        )
    return found


def _check_routes(segment: Segment, links: Links) -> None:
    network = segment.network
    for destination, device in links.routes():
        if destination.version == network.version and destination.overlaps(network):
            raise ConfigError(
                f"the overlay's network {network} overlaps the host's route to {destination}"
                f" ({device})",
                hint="choose a network that the hosts do not use themselves",
            )


def _check_other(segment: Segment, other: OverlaySettings) -> None:
    for theirs in (one.network for one in other.segments):
        if theirs.version == segment.network.version and theirs.overlaps(segment.network):
            raise ConfigError(
                f"{segment.network} overlaps {theirs}, the network of overlay {other.name}",
                hint="choose another network, or delete that overlay first",
            )
