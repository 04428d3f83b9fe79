"""Discovery from the kernel's own tables, for routed VXLAN overlays such as Flannel's.

    route to the address -> VXLAN device and next hop    ip route get 10.42.2.7
    next hop             -> MAC                          ip neigh show dev flannel.1
    MAC                  -> underlay address of a host   bridge fdb show dev flannel.1

That host's slimd is asked at the port of our own control channel, or at `control_port`. The tables
say where frames go, so they cannot be more wrong than the overlay is; whether the slimd there may
speak for the address, its certificate says. An address whose way ends elsewhere is left to the
next backend. Tables are read for each question, in a thread: nothing is kept that could be stale.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from slim.broker.plugin_api import (
    Address,
    DiscoveryBackend,
    DiscoveryContext,
    Endpoint,
    Located,
    PluginSettings,
    hookimpl,
    parse_address,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

log = logging.getLogger(__name__)

NAME = "neighbours"
LIFETIME_S = 10.0
_NTF_SELF = 2
"""Of linux/neighbour.h: the device's own table, not the bridge's that it is a port of."""
_NUD_USABLE = 0x02 | 0x04 | 0x08 | 0x10 | 0x40 | 0x80
"""REACHABLE, STALE, DELAY, PROBE, NOARP and PERMANENT of linux/neighbour.h: the MAC is known."""
_NOT_THERE = {errno.ENOENT, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENODEV, errno.EINVAL}
"""What the kernel says where there is no such route, neighbour or device."""


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The table `[plugins.neighbours]`."""

    control_port: Annotated[int, msgspec.Meta(ge=1, le=65535)] | None = None


def remote_of(destination: Address) -> Address | None:
    """The underlay address that frames to an overlay address are sent to; None: no VXLAN's.

    Reads the tables of the calling thread's network namespace. OSError when that cannot be done.
    """
    # Takes 0.1 s, of every start of slimd.
    from pyroute2 import IPRoute
    from pyroute2.netlink.exceptions import NetlinkError

    with IPRoute() as netlink:
        try:
            return _follow(netlink, destination)
        except NetlinkError as error:
            if error.code in _NOT_THERE:
                return None
            raise OSError(error.code, str(error)) from None


def _follow(netlink: Any, destination: Address) -> Address | None:
    route = _first(netlink.route("get", dst=str(destination)))
    device = route.get_attr("RTA_OIF") if route else None
    if device is None or not _is_vxlan(netlink, device):
        return None
    next_hop = route.get_attr("RTA_GATEWAY") or str(destination)
    neighbour = _first(netlink.neigh("get", dst=next_hop, ifindex=device))
    if neighbour is None or not neighbour["state"] & _NUD_USABLE:
        return None
    mac = neighbour.get_attr("NDA_LLADDR")
    remotes = {
        entry.get_attr("NDA_DST")
        for entry in netlink.fdb("dump", ifindex=device)
        if mac and entry.get_attr("NDA_LLADDR") == mac and entry["flags"] & _NTF_SELF
    } - {None}
    # More than one: a multicast or flooded entry, which names no host.
    return parse_address(remotes.pop()) if len(remotes) == 1 else None


def _is_vxlan(netlink: Any, device: int) -> bool:
    link = _first(netlink.get_links(device))
    info = link.get_attr("IFLA_LINKINFO") if link else None
    return bool(info and info.get_attr("IFLA_INFO_KIND") == "vxlan")


def _first(messages: Iterable[Any]) -> Any:
    return next(iter(messages), None)


class Neighbours:
    """The discovery backend."""

    name = NAME

    def __init__(self, control_port: int | None) -> None:
        self._control_port = control_port
        """None: without a control channel there is nobody that we could ask."""

    async def locate(self, workload: int, destination: Address) -> Located | None:
        if self._control_port is None:
            return None
        try:
            remote = await asyncio.to_thread(remote_of, destination)
        except (OSError, ValueError) as error:
            log.warning("the way to %s is not known: %s", destination, error)
            return None
        if remote is None or remote.is_unspecified or remote.is_multicast:
            return None
        return Located(None, Endpoint(remote, self._control_port), LIFETIME_S)

    def workload_added(self, workload: int, addresses: tuple[Address, ...]) -> None:
        """The tables of the host do not depend on what runs here."""

    def workload_removed(self, workload: int) -> None:
        """The tables of the host do not depend on what runs here."""

    def close(self) -> None:
        """Nothing is kept open."""


class Plugin:
    """The hooks."""

    def __init__(self) -> None:
        self._settings = Settings()

    @hookimpl
    def slim_configure(self, settings: PluginSettings) -> None:
        self._settings = settings.read(NAME, Settings)

    @hookimpl
    def slim_discovery_backends(self, context: DiscoveryContext) -> list[DiscoveryBackend]:
        own = context.control.port if context.control is not None else None
        return [Neighbours(self._settings.control_port or own)]
