"""The built-in overlay: on each host a bridge and a VXLAN device, to every container a veth pair.

Everything is on-link: containers have the overlay network's prefix length and need no route. A
frame whose host is not known yet goes to every joined host, each of which has its flood list;
where it came back from is learned (RFC 7348). No multicast in the underlay, no routing daemon.
"""

from __future__ import annotations

import os
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from slim.broker.errors import ConfigError, SlimError
from slim.broker.kernel.addresses import read_addresses
from slim.broker.kernel.namespaces import netns_cookie_of, open_namespace
from slim.broker.overlay.links import Links, open_links
from slim.broker.overlay.settings import (
    OverlayRequest,
    OverlaySettings,
    Segment,
    check_host,
    check_request,
    fits,
    is_usable,
    mac_of,
    pick_address,
    port_name,
    settle,
)
from slim.broker.overlay.state import DEFAULT_STATE_DIR, Attachment, OverlayState, StateDirectory

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from slim.broker.endpoints import Address

_OWN_NAMESPACE = "/proc/thread-self/ns/net"


class Overlay:
    """One overlay on this host, which is the network namespace of the calling thread.

    Every method reads the state anew, changes kernel and state together, or neither, and raises
    SlimError. They block: from a coroutine call them in a thread.
    """

    def __init__(self, name: str, directory: StateDirectory) -> None:
        self.name = name
        self._directory = directory

    @classmethod
    def create(cls, request: OverlayRequest, *, state_dir: Path = DEFAULT_STATE_DIR) -> Overlay:
        """Make bridge and VXLAN device. The same overlay again: what is missing is restored."""
        check_request(request)
        overlay = cls(request.name, StateDirectory(state_dir))
        with overlay._directory.lock(), open_links() as links:
            known = overlay._directory.find(request.name)
            if known is None:
                overlay._create(request, links)
            elif fits(request, known.settings):
                overlay._restore(known, links)
            else:
                raise SlimError(
                    f"overlay {request.name} exists with other settings: "
                    f"{describe_settings(known.settings)}",
                    hint=f"slimctl overlay delete {request.name}, then create it anew",
                )
        return overlay

    @classmethod
    def load(cls, name: str, *, state_dir: Path = DEFAULT_STATE_DIR) -> Overlay:
        """An overlay of this host; SlimError if there is none of that name."""
        directory = StateDirectory(state_dir)
        directory.load(name)
        return cls(name, directory)

    def read(self) -> OverlayState:
        """Its state now, without containers that are gone. Needs no privilege."""
        with open_links() as links:
            return _without_dead(self._directory.load(self.name), links)

    def join(self, peer: Address) -> None:
        """Reach the containers of another host, by its underlay address; again: no error."""
        with self._changing() as (state, links):
            settings = state.settings
            _check_peer(settings, peer)
            with ExitStack() as undo:
                if peer not in state.peers:
                    undo.callback(self._directory.save, state)
                    self._directory.save(replace(state, peers=(*state.peers, peer)))
                links.add_peer(settings.vxlan, peer)
                undo.pop_all()

    def leave(self, peer: Address) -> None:
        """The reverse of `join`."""
        with self._changing() as (state, links):
            if peer not in state.peers:
                peers = ", ".join(map(str, state.peers)) or "none"
                raise SlimError(
                    f"{peer} is no peer of overlay {self.name}", hint=f"its peers: {peers}"
                )
            links.remove_peer(state.settings.vxlan, peer)
            kept = tuple(one for one in state.peers if one != peer)
            self._directory.save(replace(state, peers=kept))

    def attach(
        self, namespace: int, addresses: tuple[Address, ...] = (), *, label: str = ""
    ) -> Attachment:
        """Give the network namespace a device on the overlay; borrows the fd.

        Of each address family that the overlay has it gets the address asked for, or the next
        free one. Again, and nothing else asked for: what it has already.
        """
        cookie = _identify(namespace)
        with self._changing() as (state, links):
            known = next((one for one in state.attachments if one.cookie == cookie), None)
            if known is not None:
                if set(addresses) <= set(known.addresses):
                    return known
                raise SlimError(
                    f"the namespace is on overlay {self.name} already, with "
                    + ", ".join(map(str, known.addresses)),
                    hint=f"slimctl overlay detach {self.name} first",
                )
            state, chosen = _choose(state, addresses)
            _check_namespace(state.settings, namespace)
            with open_links(namespace) as inside:
                attachment = Attachment(
                    namespace=label,
                    cookie=cookie,
                    device=port_name(self.name, chosen[0]),
                    interface=_free_interface(inside.names),
                    addresses=chosen,
                )
                self._plug(state, attachment, namespace, links, inside)
            return attachment

    def detach(self, *, namespace: int | None = None, address: Address | None = None) -> Attachment:
        """Take the device away from the namespace (borrows the fd) or from who has the address."""
        cookie = None if namespace is None else netns_cookie_of(namespace)
        with self._changing() as (state, links):
            for one in state.attachments:
                if one.cookie == cookie or address in one.addresses:
                    break
            else:
                subject = "the namespace" if address is None else str(address)
                raise SlimError(
                    f"{subject} is not attached to overlay {self.name}",
                    hint=f"slimctl overlay show {self.name} lists who is",
                )
            links.remove(one.device)
            kept = tuple(other for other in state.attachments if other != one)
            self._directory.save(replace(state, attachments=kept))
            return one

    def delete(self, *, force: bool = False) -> None:
        """Remove the overlay from this host; with `force` also the containers' devices."""
        with self._directory.lock(), open_links() as links:
            state = _without_dead(self._directory.load(self.name), links)
            if state.attachments and not force:
                raise SlimError(
                    f"overlay {self.name} has {len(state.attachments)} containers attached",
                    hint="detach them, or delete it with --force",
                )
            settings = state.settings
            for one in state.attachments:
                links.remove(one.device)
            for name, kind in ((settings.vxlan, "vxlan"), (settings.bridge, "bridge")):
                found = links.find(name)
                # The name may have gone to somebody else's device while ours was away.
                if found is not None and found.kind == kind:
                    links.remove(name)
            self._directory.remove(self.name)

    @contextmanager
    def _changing(self) -> Iterator[tuple[OverlayState, Links]]:
        """Lock, and bring the devices in line with the state, as after a restart of the host."""
        with self._directory.lock(), open_links() as links:
            state = self._directory.load(self.name)
            self._restore(state, links)
            yield _without_dead(state, links), links

    def _create(self, request: OverlayRequest, links: Links) -> None:
        underlay = _find_underlay(links, request.underlay)
        if underlay.is_loopback and request.mtu is None:
            raise ConfigError(
                f"{request.underlay} is on {underlay.name}, whose MTU says nothing about the wire",
                hint="give --mtu: that of the wire, less 50 (70 for an IPv6 underlay)",
            )
        settings = settle(request, None if underlay.is_loopback else underlay.mtu)
        self._check_free(settings, links)
        state = OverlayState(settings=settings)
        with ExitStack() as undo:
            undo.callback(self._directory.remove, self.name)
            self._directory.save(state)
            _make_devices(state, links, undo)
            undo.pop_all()

    def _check_free(self, settings: OverlaySettings, links: Links) -> None:
        """Neither the host nor another overlay uses the networks, the VNI or the names."""
        for segment in settings.segments:
            for network, device in links.routes():
                if network.version == segment.network.version and network.overlaps(
                    segment.network
                ):
                    raise ConfigError(
                        f"the overlay's network {segment.network} overlaps the host's route to "
                        f"{network} ({device})",
                        hint="choose a network that the hosts do not use themselves",
                    )
            self._check_others(segment)
        for name in (settings.bridge, settings.vxlan):
            if name in links.names:
                raise SlimError(
                    f"a device {name} exists already, and is not of this overlay",
                    hint=f"remove it (ip link del {name}), or name the overlay otherwise",
                )
        holder = links.with_vni(settings.vni, settings.port)
        if holder is not None:
            raise SlimError(
                f"VNI {settings.vni} is taken on UDP port {settings.port}, by {holder.name}",
                hint="give --vni, the same on every host of the overlay",
            )

    def _check_others(self, segment: Segment) -> None:
        for name in self._directory.names():
            other = self._directory.find(name)
            for theirs in other.settings.segments if other is not None else ():
                same_family = theirs.network.version == segment.network.version
                if same_family and theirs.network.overlaps(segment.network):
                    raise ConfigError(
                        f"{segment.network} overlaps {theirs.network} of overlay {name}",
                        hint="choose another network, or delete that overlay first",
                    )

    def _restore(self, state: OverlayState, links: Links) -> None:
        """Make what is missing; nothing on most calls."""
        _find_underlay(links, state.settings.underlay)
        with ExitStack() as undo:
            _make_devices(state, links, undo)
            undo.pop_all()

    def _plug(
        self,
        state: OverlayState,
        attachment: Attachment,
        namespace: int,
        links: Links,
        inside: Links,
    ) -> None:
        """Save first: what is left over from a crash then is an entry without a device, not a
        device without an entry."""
        settings, name = state.settings, attachment.interface
        with ExitStack() as undo:
            undo.callback(self._directory.save, state)
            self._directory.save(replace(state, attachments=(*state.attachments, attachment)))
            links.add_veth(
                attachment.device,
                peer=name,
                namespace=namespace,
                mac=mac_of(self.name, attachment.addresses[0]),
                mtu=settings.mtu,
            )
            undo.callback(links.remove, attachment.device)
            for address in attachment.addresses:
                segment = settings.segment_of(address)
                assert segment is not None
                inside.add_address(name, address, segment.network.prefixlen)
            inside.bring_up("lo")
            inside.bring_up(name)
            links.add_port(attachment.device, settings.bridge)
            undo.pop_all()


def attach_namespace(
    overlay_name: str,
    namespace: int | str | Path,
    address: Address | None = None,
    *,
    state_dir: Path = DEFAULT_STATE_DIR,
) -> tuple[Address, ...]:
    """Attach a namespace, given by fd (borrowed) or path; gives the addresses that it has then."""
    overlay = Overlay.load(overlay_name, state_dir=state_dir)
    addresses = () if address is None else (address,)
    if isinstance(namespace, int):
        return overlay.attach(namespace, addresses, label=f"fd {namespace}").addresses
    try:
        fd = open_namespace(str(namespace))
    except OSError as error:
        raise SlimError(
            f"cannot open the network namespace {namespace}: {error.strerror}"
        ) from None
    try:
        return overlay.attach(fd, addresses, label=str(namespace)).addresses
    finally:
        os.close(fd)
