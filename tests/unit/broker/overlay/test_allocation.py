"""Which address a container gets, and what is named after it."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING

import pytest

from slim.broker.errors import ConfigError, SlimError
from slim.broker.overlay.allocation import (
    choose_addresses,
    free_interface,
    is_usable,
    mac_of,
    pick_address,
    port_name,
)
from slim.broker.overlay.settings import OverlaySettings, Segment
from slim.broker.overlay.state import Attachment, OverlayState

if TYPE_CHECKING:
    from slim.broker.endpoints import Address

SETTINGS = OverlaySettings(
    name="web",
    segments=(
        Segment(network=ip_network("10.77.0.0/16"), subnet=ip_network("10.77.1.0/29")),
        Segment(network=ip_network("fd77::/48"), subnet=ip_network("fd77:0:0:1::/64")),
    ),
    underlay=ip_address("192.168.77.1"),
    vni=42,
    mtu=1450,
    port=4789,
)


def attached(*addresses: str) -> Attachment:
    return Attachment(
        namespace="c1",
        cookie=1,
        device="sc-1",
        interface="eth0",
        addresses=tuple(ip_address(address) for address in addresses),
    )


def choose(state: OverlayState, *asked: str) -> tuple[OverlayState, list[str]]:
    state, chosen = choose_addresses(state, tuple(ip_address(address) for address in asked))
    return state, [str(address) for address in chosen]


def picks(subnet: str, count: int, taken: set[Address] | None = None) -> list[str]:
    """What is picked one after the other when nothing is given back."""
    taken = set() if taken is None else taken
    picked: list[str] = []
    last: Address | None = None
    for _ in range(count):
        last = pick_address(ip_network(subnet), taken, last)
        if last is None:
            break
        taken.add(last)
        picked.append(str(last))
    return picked


def test_addresses_are_picked_in_turn_and_each_once() -> None:
    assert picks("10.77.1.0/29", 10) == [f"10.77.1.{number}" for number in range(1, 7)]


@pytest.mark.parametrize(
    ("subnet", "expected"),
    [
        ("10.77.1.4/32", ["10.77.1.4"]),
        ("10.77.1.4/31", ["10.77.1.4", "10.77.1.5"]),
        ("10.77.1.4/30", ["10.77.1.5", "10.77.1.6"]),
        ("fd77::4/128", ["fd77::4"]),
        ("fd77::4/126", ["fd77::5", "fd77::6", "fd77::7"]),
    ],
)
def test_small_subnets_are_used_up(subnet: str, expected: list[str]) -> None:
    assert picks(subnet, 10) == expected
    assert [
        str(address) for address in ip_network(subnet) if is_usable(ip_network(subnet), address)
    ] == expected


def test_taken_addresses_are_skipped() -> None:
    taken: set[Address] = {ip_address("10.77.1.1"), ip_address("10.77.1.3")}
    assert picks("10.77.1.0/29", 2, taken) == ["10.77.1.2", "10.77.1.4"]


def test_an_address_that_was_given_back_comes_last() -> None:
    subnet = ip_network("10.77.1.0/29")
    last: Address | None = ip_address("10.77.1.2")
    order = []
    for _ in range(6):
        last = pick_address(subnet, set(), last)
        order.append(str(last))
    assert order == [f"10.77.1.{number}" for number in (3, 4, 5, 6, 1, 2)]


def test_the_last_address_of_another_subnet_does_not_matter() -> None:
    picked = pick_address(ip_network("10.77.1.0/29"), set(), ip_address("fd77::9"))
    assert picked == ip_address("10.77.1.1")


def test_each_family_gets_an_address_and_the_state_remembers_it() -> None:
    state, first = choose(OverlayState(settings=SETTINGS))
    assert first == ["10.77.1.1", "fd77:0:0:1::1"]
    _, second = choose(state)
    assert second == ["10.77.1.2", "fd77:0:0:1::2"]


def test_an_address_asked_for_does_not_move_the_turn() -> None:
    state, chosen = choose(OverlayState(settings=SETTINGS), "10.77.1.5", "fd77:0:0:1::9")
    assert chosen == ["10.77.1.5", "fd77:0:0:1::9"]
    assert state.last == ()


def test_one_family_asked_for_leaves_the_other_to_us() -> None:
    assert choose(OverlayState(settings=SETTINGS), "fd77:0:0:1::9")[1] == [
        "10.77.1.1",
        "fd77:0:0:1::9",
    ]


@pytest.mark.parametrize(
    "address", ["10.77.2.1", "10.77.1.0", "10.77.1.7", "10.77.1.8", "fd77::1", "fd77:0:0:1::"]
)
def test_an_address_outside_the_subnet_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match="is not an address of this host's subnet"):
        choose(OverlayState(settings=SETTINGS), address)


def test_two_addresses_of_one_family_are_refused() -> None:
    with pytest.raises(ConfigError, match="one address of each family"):
        choose(OverlayState(settings=SETTINGS), "10.77.1.1", "10.77.1.2")


def test_an_address_of_a_family_that_the_overlay_has_not_is_refused() -> None:
    only_ipv4 = replace(SETTINGS, segments=SETTINGS.segments[:1])
    with pytest.raises(ConfigError, match="overlay web has no IPv6 network"):
        choose(OverlayState(settings=only_ipv4), "fd77:0:0:1::1")


def test_an_address_that_is_taken_is_refused_with_its_holder() -> None:
    state = OverlayState(settings=SETTINGS, attachments=(attached("10.77.1.1"),))
    with pytest.raises(SlimError, match=r"10\.77\.1\.1 is taken by c1"):
        choose(state, "10.77.1.1")


def test_a_full_subnet_is_an_error() -> None:
    everything = attached(*(f"10.77.1.{number}" for number in range(1, 7)))
    state = OverlayState(settings=SETTINGS, attachments=(everything,))
    with pytest.raises(SlimError, match=r"all addresses of 10\.77\.1\.0/29 are taken"):
        choose(state)


def test_a_mac_address_is_local_unicast_and_the_address_s_own() -> None:
    first, second = (mac_of(SETTINGS, ip_address(f"10.77.1.{number}")) for number in (1, 2))
    assert first != second
    assert first == mac_of(SETTINGS, ip_address("10.77.1.1"))
    octets = [int(octet, 16) for octet in first.split(":")]
    assert len(octets) == 6
    assert octets[0] & 0b11 == 0b10


def test_port_names_fit_and_differ() -> None:
    names = {port_name(SETTINGS, ip_address(f"10.77.1.{number}")) for number in range(100)}
    assert len(names) == 100
    assert {len(name) for name in names} == {15}


def test_the_first_free_interface_is_taken() -> None:
    assert free_interface({"lo"}) == "eth0"
    assert free_interface({"lo", "eth0", "eth1", "eth3"}) == "eth2"
