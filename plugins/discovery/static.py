"""Discovery from the configuration: which host has which overlay networks and addresses.

    [plugins.static]
    peers = [
        {host = "b", control = "192.168.77.2:7946", networks = ["10.77.2.0/24"]},
        {host = "c", control = "192.168.77.3:7946", addresses = ["10.77.2.9"]},
    ]

The longest prefix wins. This host may be among the peers, so that all hosts can share one file;
what is its own, and what nobody is named for, is left to the next backend.
"""

from __future__ import annotations

import ipaddress

import msgspec

from slim.broker.plugin_api import (
    Address,
    ConfigError,
    DiscoveryBackend,
    DiscoveryContext,
    Endpoint,
    Located,
    Network,
    PluginSettings,
    hookimpl,
    parse_address,
)

NAME = "static"
LIFETIME_S = 300.0
"""The answers change with the configuration only; this bounds what a caller keeps."""


class Peer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One host, and what it answers for."""

    host: str
    control: str
    networks: list[str] = []
    addresses: list[str] = []


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The table `[plugins.static]`."""

    peers: list[Peer] = []


class StaticPeers:
    """The discovery backend: networks to hosts, longest prefix first."""

    name = NAME

    def __init__(self, own_host: str, networks: dict[Network, Located]) -> None:
        self._own_host = own_host
        self._networks = networks
        self._lengths = {
            version: sorted({n.prefixlen for n in networks if n.version == version}, reverse=True)
            for version in (4, 6)
        }

    async def locate(self, workload: int, destination: Address) -> Located | None:
        for length in self._lengths[destination.version]:
            network = ipaddress.ip_network((destination.packed, length), strict=False)
            located = self._networks.get(network)
            if located is not None:
                return None if located.host == self._own_host else located
        return None

    def workload_added(self, workload: int, addresses: tuple[Address, ...]) -> None:
        """Nothing here depends on what runs where."""

    def workload_removed(self, workload: int) -> None:
        """Nothing here depends on what runs where."""

    def close(self) -> None:
        """There is nothing to let go of."""


class Plugin:
    """The hooks."""

    def __init__(self) -> None:
        self._backend = StaticPeers("", {})

    @hookimpl
    def slim_configure(self, settings: PluginSettings) -> None:
        peers = settings.read(NAME, Settings).peers
        self._backend = StaticPeers(settings.host, _read_networks(settings, peers))

    @hookimpl
    def slim_discovery_backends(self, context: DiscoveryContext) -> list[DiscoveryBackend]:
        return [self._backend]


def _read_networks(settings: PluginSettings, peers: list[Peer]) -> dict[Network, Located]:
    found: dict[Network, Located] = {}
    hosts: set[str] = set()
    for index, peer in enumerate(peers):

        def mistake(message: str, key: str, at: str = f"peers[{index}]") -> ConfigError:
            return settings.mistake(NAME, message, key=f"{at}.{key}")

        if not peer.host or peer.host in hosts:
            raise mistake(f"{peer.host!r} is named twice" if peer.host else "is empty", "host")
        hosts.add(peer.host)
        if not peer.networks and not peer.addresses:
            raise mistake(f"host {peer.host!r} has neither networks nor addresses", "networks")
        try:
            control = Endpoint.parse(peer.control)
        except ValueError as error:
            raise mistake(str(error), "control") from None
        if control.port == 0 or control.address.is_unspecified:
            raise mistake(f"nothing can be reached at {control}", "control")
        located = Located(peer.host, control, LIFETIME_S)
        for key, texts in (("networks", peer.networks), ("addresses", peer.addresses)):
            for text in texts:
                try:
                    network = _parse(key, text)
                except ValueError as error:
                    raise mistake(str(error), key) from None
                other = found.setdefault(network, located)
                if other is not located:
                    raise mistake(f"{text} already is host {other.host!r}'s", key)
    return found


def _parse(key: str, text: str) -> Network:
    if key == "addresses":
        return ipaddress.ip_network(parse_address(text))
    return ipaddress.ip_network(text)
