"""Network devices of one namespace, through pyroute2; the only module that imports it.

pyroute2 takes 0.15 s to import, so that happens at the first use. It runs an event loop of its
own in every thread: from a coroutine call this in a thread (asyncio.to_thread).
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from slim.broker.endpoints import Address, Network, parse_address
from slim.broker.errors import KernelFeatureMissing, SlimError
from slim.broker.kernel.namespaces import in_namespace

if TYPE_CHECKING:
    from collections.abc import Iterator

    from slim.broker.overlay.settings import OverlaySettings

# From linux/if.h, linux/if_addr.h, linux/if_link.h, linux/rtnetlink.h.
IFA_F_NODAD = 2
IFF_LOOPBACK = 8
IFF_UP = 1
IN6_ADDR_GEN_MODE_NONE = 1
RTN_LOCAL = 2
RTN_UNICAST = 1

# Frames for a MAC address that no entry names, and all broadcasts, go to the peers of this one.
_FLOOD = "00:00:00:00:00:00"

_HINTS = {
    errno.EACCES: "IPv6 is off there (sysctl net.ipv6.conf.*.disable_ipv6)",
    errno.EPERM: "it takes root (CAP_NET_ADMIN in the namespace's user namespace)",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """One network device."""

    index: int
    name: str
    mtu: int
    kind: str
    """`bridge`, `vxlan`, `veth`; empty for what is no virtual device."""
    vni: int | None
    master: int | None
    """Index of the bridge that it is a port of."""
    is_up: bool
    is_loopback: bool


class Links:
    """The devices of one network namespace. From `open_links`, which closes it."""

    def __init__(self, route: Any, names: frozenset[str]) -> None:
        self._route = route
        self.names = names
        """Of all devices, when it was opened."""

    def find(self, name: str) -> Link | None:
        """The device of that name, or None."""
        with _asking(f"look for the device {name}"):
            try:
                return _describe(self._route.link("get", ifname=name)[0])
            except _netlink_error() as error:
                if error.code == errno.ENODEV:
                    return None
                raise

    def holding(self, address: Address) -> Link | None:
        """The device that has the address, or None."""
        with _asking("list addresses"):
            for one in self._route.get_addr(family=_family(address)):
                # On a point-to-point link IFA_ADDRESS is the peer's.
                text = one.get_attr("IFA_LOCAL") or one.get_attr("IFA_ADDRESS")
                if text and parse_address(text) == address:
                    return _describe(self._route.link("get", index=one["index"])[0])
        return None

    def routes(self) -> list[tuple[Network, str]]:
        """Destinations and their devices; no default route, link-local or multicast one."""
        names = dict(socket.if_nameindex())
        found: list[tuple[Network, str]] = []
        with _asking("list routes"):
            for one in self._route.get_routes():
                text = one.get_attr("RTA_DST")
                if text is None or one["type"] not in (RTN_UNICAST, RTN_LOCAL):
                    continue
                network = ipaddress.ip_network(f"{text}/{one['dst_len']}")
                if network.prefixlen > 0 and not network.is_link_local:
                    found.append((network, names.get(one.get_attr("RTA_OIF"), "")))
        return found

    def with_vni(self, vni: int, port: int) -> Link | None:
        """The VXLAN device that has the number on that UDP port: the kernel allows one."""
        with _asking("list VXLAN devices"):
            for one in self._route.get_links(kind="vxlan"):
                data = one.get_nested("IFLA_LINKINFO", "IFLA_INFO_DATA")
                if (_attr(data, "IFLA_VXLAN_ID"), _attr(data, "IFLA_VXLAN_PORT")) == (vni, port):
                    return _describe(one)
        return None

    def add_bridge(self, name: str, mtu: int) -> None:
        """Make a bridge, still down."""
        with _asking(f"make the bridge {name}", feature="bridges (CONFIG_BRIDGE)"):
            # Snooping would hold back neighbour discovery's multicast where a querier is around.
            self._route.link("add", ifname=name, kind="bridge", mtu=mtu, br_mcast_snooping=0)

    def start_bridge(self, name: str) -> None:
        """Bring a bridge up on which the host is not to be reached: no IPv6, no ARP."""
        with _asking(f"bring the bridge {name} up"):
            self._silence(name)
            self._route.link("set", index=self._index(name), arp=False, state="up")

    def add_vxlan(self, settings: OverlaySettings) -> None:
        """A VXLAN device, still down, that learns which host a MAC address is at."""
        name, local = settings.vxlan, settings.underlay
        asked = {"vxlan_local6" if local.version == 6 else "vxlan_local": str(local)}
        with _asking(f"make the VXLAN device {name}", feature="VXLAN (CONFIG_VXLAN)"):
            self._route.link(
                "add",
                ifname=name,
                kind="vxlan",
                mtu=settings.mtu,
                vxlan_id=settings.vni,
                vxlan_port=settings.port,
                vxlan_learning=1,
                **asked,
            )

    def add_veth(self, name: str, *, peer: str, namespace: int, mac: str, mtu: int) -> None:
        """A pair of devices, `peer` of them in the other namespace; borrows its fd."""
        with _asking(f"make the device {peer} in the namespace", feature="veth (CONFIG_VETH)"):
            self._route.link(
                "add",
                ifname=name,
                kind="veth",
                mtu=mtu,
                peer={"ifname": peer, "net_ns_fd": namespace, "mtu": mtu, "address": mac},
            )

    def add_port(self, name: str, bridge: str) -> None:
        """Make the device a port of the bridge, and bring it up. Doing it again is no error."""
        with _asking(f"make {name} a port of {bridge}"):
            self._silence(name)
            index = self._index(name)
            self._route.link("set", index=index, master=self._index(bridge), state="up")

    def bring_up(self, name: str) -> None:
        with _asking(f"bring {name} up"):
            self._route.link("set", index=self._index(name), state="up")

    def add_address(self, name: str, address: Address, prefixlen: int) -> None:
        """Give the device the address, usable at once: nobody else can have been given it."""
        # Duplicate address detection (RFC 4862) would hold the address back for a second.
        flags = {"flags": IFA_F_NODAD} if address.version == 6 else {}
        with _asking(f"give {name} the address {address}"):
            self._route.addr(
                "add", index=self._index(name), address=str(address), prefixlen=prefixlen, **flags
            )

    def add_peer(self, vxlan: str, peer: Address) -> None:
        """Flood to that host as well. Doing it again is no error."""
        with _asking(f"add {peer} to {vxlan}"):
            self._route.fdb("append", ifindex=self._index(vxlan), lladdr=_FLOOD, dst=str(peer))

    def remove_peer(self, vxlan: str, peer: Address) -> None:
        """Neither flood to that host nor remember who is there. No error if it is no peer."""
        with _asking(f"remove {peer} from {vxlan}"):
            index = self._index(vxlan)
            for entry in list(self._route.fdb("dump", ifindex=index)):
                target = entry.get_attr("NDA_DST")
                if target is None or parse_address(target) != peer:
                    continue
                mac = entry.get_attr("NDA_LLADDR")
                try:
                    self._route.fdb("del", ifindex=index, lladdr=mac, dst=target)
                except _netlink_error() as error:
                    # A learned entry may age out meanwhile.
                    if error.code != errno.ENOENT:
                        raise

    def remove(self, name: str) -> None:
        """Delete the device; no error if it is gone."""
        with _asking(f"remove the device {name}"):
            try:
                self._route.link("del", index=self._index(name))
            except _netlink_error() as error:
                if error.code != errno.ENODEV:
                    raise

    def _silence(self, name: str) -> None:
        """No link-local address, at which containers could reach the host."""
        mode = [["IFLA_INET6_ADDR_GEN_MODE", IN6_ADDR_GEN_MODE_NONE]]
        try:
            self._route.link(
                "set",
                index=self._index(name),
                IFLA_AF_SPEC={"attrs": [["AF_INET6", {"attrs": mode}]]},
            )
        except _netlink_error() as error:
            # A host without IPv6 is silent as it is.
            if error.code != errno.EAFNOSUPPORT:
                raise

    def _index(self, name: str) -> int:
        index: int = self._route.link("get", ifname=name)[0]["index"]
        return index


@contextmanager
def open_links(namespace: int | None = None) -> Iterator[Links]:
    """The devices of that network namespace, or of the calling thread's; borrows the fd."""
    import asyncio

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        pass
    else:
        raise RuntimeError("call this in a thread (asyncio.to_thread), not in the event loop's")
    from pyroute2 import IPRoute

    with _asking("open a netlink socket"):
        if namespace is None:
            route, names = IPRoute(), read_names()
        else:
            with in_namespace(namespace):
                # Both belong to the namespace that they are made in, for good.
                route, names = IPRoute(), read_names()
    with route:
        yield Links(route, names)


def read_names() -> frozenset[str]:
    """Of all devices in the calling thread's network namespace."""
    return frozenset(name for _, name in socket.if_nameindex())


def _describe(found: Any) -> Link:
    data = found.get_nested("IFLA_LINKINFO", "IFLA_INFO_DATA")
    return Link(
        index=found["index"],
        name=found.get_attr("IFLA_IFNAME"),
        mtu=found.get_attr("IFLA_MTU"),
        kind=found.get_nested("IFLA_LINKINFO", "IFLA_INFO_KIND") or "",
        vni=_attr(data, "IFLA_VXLAN_ID"),
        master=found.get_attr("IFLA_MASTER"),
        is_up=bool(found["flags"] & IFF_UP),
        is_loopback=bool(found["flags"] & IFF_LOOPBACK),
    )


def _attr(data: Any, name: str) -> int | None:
    # Data of a kind that pyroute2 does not know is a bare string.
    return data.get_attr(name) if hasattr(data, "get_attr") else None


def _family(address: Address) -> int:
    return socket.AF_INET6 if address.version == 6 else socket.AF_INET


def _netlink_error() -> Any:
    from pyroute2.netlink.exceptions import NetlinkError

    return NetlinkError


@contextmanager
def _asking(what: str, feature: str = "") -> Iterator[None]:
    """Turn the kernel's refusal into a SlimError: cannot `what`."""
    try:
        yield
    except _netlink_error() as error:
        code: int = error.code
    except OSError as error:
        code = error.errno or errno.EIO
    else:
        return
    if feature and code == errno.EOPNOTSUPP:
        raise KernelFeatureMissing(f"cannot {what}: this kernel has no {feature}")
    raise SlimError(f"cannot {what}: {os.strerror(code)}", hint=_HINTS.get(code, ""))
