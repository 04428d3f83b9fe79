"""Discovery from the configuration."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest

from slim.broker.endpoints import Endpoint, parse_address
from slim.broker.errors import ConfigError
from slim.broker.plugin_settings import PluginSettings
from slim.plugins.discovery.static import Plugin
from support.lending import LoopbackContext

if TYPE_CHECKING:
    from slim.broker.discovery import DiscoveryBackend, Located

Peer: TypeAlias = dict[str, Any]

B: Peer = {"host": "b", "control": "192.168.77.2:7946", "networks": ["10.77.2.0/24", "fd77:2::/64"]}
C: Peer = {"host": "c", "control": "[fd00::3]:7946", "networks": ["10.77.0.0/16"]}
D: Peer = {"host": "d", "control": "192.168.77.4:7946", "addresses": ["10.77.2.9", "fd77:2::9"]}


def configured(*peers: Peer, own_host: str = "a") -> DiscoveryBackend:
    plugin = Plugin()
    plugin.slim_configure(
        PluginSettings(own_host, "slimd.toml", {"static": {"peers": list(peers)}})
    )
    [backend] = plugin.slim_discovery_backends(LoopbackContext())
    return backend


def locate(backend: DiscoveryBackend, address: str) -> Located | None:
    return asyncio.run(backend.locate(1, parse_address(address)))


def located_host(backend: DiscoveryBackend, address: str) -> str | None:
    located = locate(backend, address)
    return None if located is None else located.host


def test_an_address_in_a_peers_network_is_that_peers() -> None:
    located = locate(configured(B), "10.77.2.1")
    assert located is not None
    assert located.host == "b"
    assert located.control == Endpoint.parse("192.168.77.2:7946")
    assert located.lifetime_s > 0


@pytest.mark.parametrize("peers", [(B, C, D), (D, C, B), (C, B, D)])
@pytest.mark.parametrize(
    ("address", "host"),
    [
        ("10.77.2.9", "d"),
        ("10.77.2.8", "b"),
        ("10.77.3.1", "c"),
        ("fd77:2::9", "d"),
        ("fd77:2::8", "b"),
    ],
)
def test_the_longest_prefix_wins_in_any_order(
    peers: tuple[Peer, ...], address: str, host: str
) -> None:
    assert located_host(configured(*peers), address) == host


@pytest.mark.parametrize("address", ["10.78.0.1", "fd78::1"])
def test_addresses_that_nobody_is_named_for_are_left_to_others(address: str) -> None:
    assert locate(configured(B, C, D), address) is None


def test_without_a_table_it_has_no_opinion() -> None:
    [backend] = Plugin().slim_discovery_backends(LoopbackContext())
    assert locate(backend, "10.77.2.1") is None


def test_this_hosts_own_networks_are_nobody_elses() -> None:
    backend = configured(B, C, own_host="b")
    assert locate(backend, "10.77.2.1") is None
    assert located_host(backend, "10.77.3.1") == "c"


def test_a_default_route_takes_what_is_left() -> None:
    everything = {"host": "z", "control": "192.168.77.9:7946", "networks": ["0.0.0.0/0"]}
    backend = configured(everything, B)
    assert located_host(backend, "8.8.8.8") == "z"
    assert located_host(backend, "10.77.2.1") == "b"
    assert locate(backend, "fd99::1") is None


@pytest.mark.parametrize(
    ("peers", "message"),
    [
        ([B, B], "peers[1].host: 'b' is named twice"),
        ([B | {"host": ""}], "peers[0].host: is empty"),
        ([{"host": "b", "control": "1.2.3.4:5"}], "peers[0].networks: host 'b' has neither"),
        ([B | {"control": "1.2.3.4"}], "peers[0].control: '1.2.3.4' is not address:port"),
        ([B | {"control": "1.2.3.4:0"}], "peers[0].control: nothing can be reached at"),
        ([B | {"control": "0.0.0.0:7946"}], "peers[0].control: nothing can be reached at"),
        ([B | {"control": "1.2.3.4:70000"}], "peers[0].control: port 70000"),
        ([B | {"networks": ["10.77.2.1/24"]}], "peers[0].networks: 10.77.2.1/24 has host bits"),
        ([B | {"networks": ["10.77"]}], "peers[0].networks: '10.77' does not appear"),
        ([B | {"addresses": ["10.77.2.0/24"]}], "peers[0].addresses: '10.77.2.0/24' does not"),
        ([B, C | {"networks": B["networks"]}], "peers[1].networks: 10.77.2.0/24 already is host"),
        ([D, B | {"networks": ["10.77.2.9/32"]}], "peers[1].networks: 10.77.2.9/32 already is"),
        ([{"control": "1.2.3.4:5"}], "peers[0]: Object missing required field `host`"),
        ([B | {"network": []}], "peers[0]: Object contains unknown field `network`"),
    ],
)
def test_each_mistake_is_told_with_its_place(peers: list[Peer], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        configured(*peers)
    assert str(caught.value).startswith(f"slimd.toml: [plugins.static] {message}")


def test_one_network_named_twice_for_the_same_host_is_no_mistake() -> None:
    backend = configured(B | {"addresses": ["10.77.9.1"], "networks": ["10.77.9.1/32"]})
    assert located_host(backend, "10.77.9.1") == "b"
