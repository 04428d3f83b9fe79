"""The built-in overlay: on each host a bridge and a VXLAN device, to every container a veth pair.

Everything is on-link: containers have the overlay network's prefix length and need no route. A
frame whose host is not known yet goes to every joined host, each of which has its flood list;
where it came back from is learned (RFC 7348). No multicast in the underlay, no routing daemon.
"""

from __future__ import annotations

import os
import socket
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from slim.broker.errors import ConfigError, SlimError
from slim.broker.kernel.addresses import read_addresses
from slim.broker.kernel.namespaces import (
    in_namespace,
    netns_cookie,
    netns_cookie_of,
    open_namespace,
)
from slim.broker.overlay.allocation import choose_addresses, free_interface, port_name
from slim.broker.overlay.devices import (
    find_underlay,
    make_devices,
    plug,
    remove_devices,
    settle_on_host,
    without_dead,
)
from slim.broker.overlay.links import Links, open_links, read_names
from slim.broker.overlay.settings import (
    OverlayRequest,
    OverlaySettings,
    check_host,
    check_request,
    fits,
)
from slim.broker.overlay.source_guard import guard_sources, remove_guard
from slim.broker.overlay.state import DEFAULT_STATE_DIR, Attachment, OverlayState, StateDirectory

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from slim.broker.endpoints import Address


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
                # A firewall that was loaded anew may have taken it away.
                guard_sources(without_dead(known, read_names()))
            else:
                raise SlimError(
                    f"overlay {request.name} exists with other settings: "
                    f"{known.settings.describe()}",
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
        return without_dead(self._directory.load(self.name), read_names())

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
        cookie = _read_cookie(namespace)
        _check_is_container(cookie)
        with self._changing() as (state, links):
            known = next((one for one in state.attachments if one.cookie == cookie), None)
            if known is not None and not _is_whole(known, links):
                # Somebody was killed while attaching it.
                links.remove(known.device)
                others = tuple(one for one in state.attachments if one != known)
                state, known = replace(state, attachments=others), None
            if known is not None:
                if set(addresses) <= set(known.addresses):
                    return known
                raise SlimError(
                    f"the namespace is on overlay {self.name} already, with "
                    + ", ".join(map(str, known.addresses)),
                    hint=f"slimctl overlay detach {self.name} first",
                )
            after, chosen = choose_addresses(state, addresses)
            _check_namespace(state.settings, namespace)
            with in_namespace(namespace):
                names = read_names()
            attachment = Attachment(
                namespace=label,
                cookie=cookie,
                device=port_name(state.settings, chosen[0]),
                interface=free_interface(names),
                addresses=chosen,
            )
            with ExitStack() as undo:
                # Saved first: what a crash leaves then is an entry without a device, which is
                # overlooked, and no device whose address is given out once more.
                undo.callback(self._directory.save, state)
                after = replace(after, attachments=(*state.attachments, attachment))
                self._directory.save(after)
                # In force before the device is a port.
                undo.callback(guard_sources, state)
                guard_sources(after)
                plug(attachment, namespace, state, links)
                undo.pop_all()
            return attachment

    def detach(self, *, namespace: int | None = None, address: Address | None = None) -> Attachment:
        """Take the device away from the namespace (borrows the fd) or from who has the address."""
        cookie = None if namespace is None else _read_cookie(namespace)
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
            state = replace(state, attachments=kept)
            self._directory.save(state)
            guard_sources(state)
            return one

    def delete(self, *, force: bool = False) -> None:
        """Remove the overlay from this host; with `force` also the containers' devices."""
        with self._directory.lock(), open_links() as links:
            state = without_dead(self._directory.load(self.name), links.names)
            if state.attachments and not force:
                raise SlimError(
                    f"overlay {self.name} has {len(state.attachments)} containers attached",
                    hint="detach them, or delete it with --force",
                )
            remove_devices(state, links)
            remove_guard(state.settings)
            self._directory.remove(self.name)

    @contextmanager
    def _changing(self) -> Iterator[tuple[OverlayState, Links]]:
        """Lock, and bring the devices in line with the state, as after a restart of the host."""
        with self._directory.lock(), open_links() as links:
            state = self._directory.load(self.name)
            self._restore(state, links)
            yield without_dead(state, links.names), links

    def _create(self, request: OverlayRequest, links: Links) -> None:
        others = [state.settings for state in map(self._directory.load, self._directory.names())]
        state = OverlayState(settings=settle_on_host(request, others, links))
        with ExitStack() as undo:
            undo.callback(self._directory.remove, self.name)
            self._directory.save(state)
            make_devices(state, links, undo)
            undo.callback(remove_guard, state.settings)
            guard_sources(state)
            undo.pop_all()

    def _restore(self, state: OverlayState, links: Links) -> None:
        find_underlay(links, state.settings.underlay)
        with ExitStack() as undo:
            make_devices(state, links, undo)
            undo.pop_all()


def _read_cookie(namespace: int) -> int:
    try:
        return netns_cookie_of(namespace)
    except OSError as error:
        raise SlimError(
            f"that is no network namespace that can be entered: {error.strerror}",
            hint="name one from `ip netns list`; entering it takes root (CAP_SYS_ADMIN)",
        ) from None


def _check_is_container(cookie: int) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as own:
        if cookie == netns_cookie(own):
            raise SlimError(
                "the host's own network namespace cannot be attached to an overlay",
                hint="make one for the container: ip netns add NAME",
            )


def _is_whole(attachment: Attachment, links: Links) -> bool:
    """Becoming a port of the bridge is the last that happens to a device (devices.plug)."""
    found = links.find(attachment.device)
    return found is not None and found.master is not None


def _check_namespace(settings: OverlaySettings, namespace: int) -> None:
    for address in read_addresses(namespace):
        segment = settings.segment_of(address)
        if segment is not None:
            raise SlimError(
                f"the namespace has the address {address} on {segment.network} already",
                hint="remove it there, or make the overlay of another network",
            )


def _check_peer(settings: OverlaySettings, peer: Address) -> None:
    check_host(peer)
    if peer == settings.underlay:
        raise ConfigError(
            f"{peer} is this host's own underlay address",
            hint="join names the other hosts, on each of them",
        )
    if peer.version != settings.underlay.version:
        raise ConfigError(
            f"the underlay of overlay {settings.name} is IPv{settings.underlay.version}, "
            f"{peer} is not"
        )
    if settings.segment_of(peer) is not None:
        raise ConfigError(
            f"{peer} is an address of the overlay itself",
            hint="--peer takes the other host's underlay address",
        )


def attach_namespace(
    overlay_name: str,
    namespace: int | str | Path,
    address: Address | None = None,
    *,
    label: str = "",
    state_dir: Path = DEFAULT_STATE_DIR,
) -> tuple[Address, ...]:
    """Attach a namespace, given by fd (borrowed) or path; gives the addresses that it has then.

    `label` is what `slimctl overlay show` calls it.
    """
    overlay = Overlay.load(overlay_name, state_dir=state_dir)
    addresses = () if address is None else (address,)
    if isinstance(namespace, int):
        return overlay.attach(namespace, addresses, label=label).addresses
    try:
        fd = open_namespace(str(namespace))
    except OSError as error:
        raise SlimError(
            f"cannot open the network namespace {namespace}: {error.strerror}"
        ) from None
    try:
        return overlay.attach(fd, addresses, label=label or str(namespace)).addresses
    finally:
        os.close(fd)
