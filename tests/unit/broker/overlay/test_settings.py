"""What an overlay may be: names, networks, MTU, and the numbers that follow from a name."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from slim.broker.errors import ConfigError
from slim.broker.overlay.settings import (
    MAX_VNI,
    OverlayRequest,
    Segment,
    check_host,
    check_name,
    check_request,
    device_name,
    fits,
    settle,
    vni_of,
)

IPV4 = Segment(network=ip_network("10.77.0.0/16"), subnet=ip_network("10.77.1.0/24"))
IPV6 = Segment(network=ip_network("fd77::/48"), subnet=ip_network("fd77:0:0:1::/64"))
REQUEST = OverlayRequest(name="web", segments=(IPV4, IPV6), underlay=ip_address("192.168.77.1"))


def test_a_good_request_is_accepted() -> None:
    check_request(REQUEST)


@pytest.mark.parametrize("name", ["web", "0", "-", "a" * 63, "web-2"])
def test_names_as_in_the_configuration_are_accepted(name: str) -> None:
    check_name(name)


@pytest.mark.parametrize("name", ["", "Web", "a" * 64, "a/b", "..", "a.b", "web\n", "wéb"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="is not a name"):
        check_name(name)


@pytest.mark.parametrize(
    ("network", "subnet"),
    [
        ("10.77.0.0/16", "10.78.0.0/24"),
        ("10.77.0.0/16", "10.0.0.0/8"),
        ("10.77.0.0/16", "fd77::/64"),
        ("fd77::/48", "fd77:0:1::/64"),
        ("224.0.0.0/8", "224.1.0.0/16"),
        ("127.0.0.0/8", "127.1.0.0/16"),
        ("fe80::/64", "fe80::/80"),
        ("192.168.0.0/16", "192.168.1.0/24"),
    ],
)
def test_unfit_networks_are_refused(network: str, subnet: str) -> None:
    segment = Segment(network=ip_network(network), subnet=ip_network(subnet))
    with pytest.raises(ConfigError):
        check_request(replace(REQUEST, segments=(segment,)))


def test_a_second_network_of_a_family_is_refused() -> None:
    other = Segment(network=ip_network("10.78.0.0/16"), subnet=ip_network("10.78.1.0/24"))
    with pytest.raises(ConfigError, match="one network of each family"):
        check_request(replace(REQUEST, segments=(IPV4, other)))


def test_the_subnet_may_be_the_whole_network() -> None:
    whole = Segment(network=IPV4.network, subnet=IPV4.network)
    check_request(replace(REQUEST, segments=(whole,)))


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "127.0.0.1", "::1", "224.0.0.1", "fe80::1"])
def test_addresses_that_hosts_cannot_send_to_are_refused(address: str) -> None:
    with pytest.raises(ConfigError):
        check_host(ip_address(address))


@pytest.mark.parametrize(
    "request_",
    [replace(REQUEST, vni=0), replace(REQUEST, vni=MAX_VNI + 1), replace(REQUEST, port=65536)],
)
def test_numbers_that_the_header_has_no_room_for_are_refused(request_: OverlayRequest) -> None:
    with pytest.raises(ConfigError, match="is not between 1 and"):
        check_request(request_)


@pytest.mark.parametrize(
    ("underlay", "mtu", "expected"),
    [("192.168.77.1", 1500, 1450), ("fd99::1", 1500, 1430), ("192.168.77.1", 9000, 8950)],
)
def test_the_mtu_leaves_room_for_the_outer_headers(underlay: str, mtu: int, expected: int) -> None:
    assert settle(replace(REQUEST, underlay=ip_address(underlay)), mtu).mtu == expected


def test_an_mtu_may_be_smaller_but_not_larger() -> None:
    assert settle(replace(REQUEST, mtu=1300), 1500).mtu == 1300
    with pytest.raises(ConfigError, match="1451 is more than 1450"):
        settle(replace(REQUEST, mtu=1451), 1500)


@pytest.mark.parametrize(("segments", "underlay_mtu"), [((IPV4, IPV6), 1329), ((IPV4,), 625)])
def test_an_underlay_with_too_little_room_is_refused(
    segments: tuple[Segment, ...], underlay_mtu: int
) -> None:
    request = replace(REQUEST, segments=segments)
    with pytest.raises(ConfigError, match="is less than"):
        settle(request, underlay_mtu)
    settle(request, underlay_mtu + 1)


def test_the_vni_of_a_name_never_changes() -> None:
    # Hosts of different versions must agree on it.
    assert vni_of("web") == 11488143
    assert settle(REQUEST, 1500).vni == vni_of("web")
    assert settle(replace(REQUEST, vni=42), 1500).vni == 42


def test_what_was_left_open_fits_and_what_was_asked_must_agree() -> None:
    settings = settle(replace(REQUEST, vni=42), 1500)
    assert fits(REQUEST, settings)
    assert fits(replace(REQUEST, vni=42, mtu=1450), settings)
    assert not fits(replace(REQUEST, vni=43), settings)
    assert not fits(replace(REQUEST, mtu=1400), settings)
    assert not fits(replace(REQUEST, segments=(IPV4,)), settings)
    assert not fits(replace(REQUEST, port=4790), settings)


@pytest.mark.parametrize("name", ["web", "twelve-chars", "thirteen-char", "a" * 63])
def test_device_names_fit_and_differ(name: str) -> None:
    assert len(device_name("sb-", name)) <= 15
    assert device_name("sb-", name).startswith("sb-")
    assert device_name("sb-", name) != device_name("sb-", name[:-1])


def test_a_short_name_can_be_read_in_the_device() -> None:
    assert device_name("sb-", "twelve-chars") == "sb-twelve-chars"
