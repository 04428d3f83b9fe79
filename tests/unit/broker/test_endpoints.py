"""Addresses, endpoints, ranges and networks are read, printed and compared as one value each."""

from __future__ import annotations

import ipaddress

import pytest

from slim.broker.endpoints import (
    Endpoint,
    PortRange,
    contains_any,
    from_packed16,
    packed16,
    parse_address,
    unmapped,
)

V4 = ipaddress.IPv4Address("192.0.2.1")
V6 = ipaddress.IPv6Address("2001:db8::1")


# --- addresses --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("192.0.2.1", V4),
        ("2001:db8::1", V6),
        ("2001:DB8:0:0::1", V6),
        ("::ffff:192.0.2.1", V4),
        ("::ffff:c000:201", V4),
        ("0.0.0.0", ipaddress.IPv4Address(0)),
        ("::", ipaddress.IPv6Address(0)),
    ],
)
def test_an_address_is_read_as_one_value(
    text: str, address: ipaddress.IPv4Address | ipaddress.IPv6Address
) -> None:
    assert parse_address(text) == address
    assert type(parse_address(text)) is type(address)


@pytest.mark.parametrize(
    "text",
    ["", "host", "192.0.2", "192.0.2.256", "192.0.2.01", "1::2::3", "192.0.2.1/32", "fe80::1%eth0"],
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_address(text)


def test_only_mapped_addresses_are_unmapped() -> None:
    assert unmapped(V4) is V4
    assert unmapped(V6) is V6
    assert unmapped(ipaddress.IPv6Address("::192.0.2.1")).version == 6
    assert unmapped(ipaddress.IPv6Address("::ffff:192.0.2.1")) == V4


@pytest.mark.parametrize(
    ("address", "raw"),
    [
        (V4, bytes.fromhex("00000000000000000000ffffc0000201")),
        (V6, bytes.fromhex("20010db8000000000000000000000001")),
        (ipaddress.IPv4Address(0), bytes.fromhex("00000000000000000000ffff00000000")),
        (ipaddress.IPv6Address(0), bytes(16)),
    ],
)
def test_an_address_packs_into_16_bytes_and_back(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address, raw: bytes
) -> None:
    assert packed16(address) == raw
    assert from_packed16(raw) == address
    assert from_packed16(raw).version == address.version


@pytest.mark.parametrize("raw", [b"", bytes(4), bytes(15), bytes(17)])
def test_only_16_bytes_unpack(raw: bytes) -> None:
    with pytest.raises(ValueError, match="16"):
        from_packed16(raw)


# --- endpoints --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "endpoint"),
    [
        ("192.0.2.1:80", Endpoint(V4, 80)),
        ("[2001:db8::1]:80", Endpoint(V6, 80)),
        ("192.0.2.1:0", Endpoint(V4, 0)),
        ("192.0.2.1:65535", Endpoint(V4, 65535)),
    ],
)
def test_an_endpoint_is_printed_as_it_is_read(text: str, endpoint: Endpoint) -> None:
    assert Endpoint.parse(text) == endpoint
    assert str(endpoint) == text


def test_a_mapped_endpoint_is_the_ipv4_one() -> None:
    assert str(Endpoint.parse("[::ffff:192.0.2.1]:80")) == "192.0.2.1:80"


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        ":80",
        "80",
        "192.0.2.1",
        "192.0.2.1:",
        "192.0.2.1:http",
        "192.0.2.1:+80",
        "192.0.2.1: 80",
        "192.0.2.1:\u0668\u0660",
        "192.0.2.1:65536",
        "192.0.2.1:-1",
        " 192.0.2.1:80",
        "2001:db8::1:80",
        "2001:db8::1",
        "[2001:db8::1]",
        "[2001:db8::1:80",
        "2001:db8::1]:80",
        "[[2001:db8::1]]:80",
        "[192.0.2.1]:80",
        "[]:80",
        "[fe80::1%eth0]:80",
        "host:80",
    ],
)
def test_what_is_no_endpoint_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        Endpoint.parse(text)


@pytest.mark.parametrize("port", [-1, 65536])
def test_a_port_must_fit_16_bits(port: int) -> None:
    with pytest.raises(ValueError, match="not between 0 and 65535"):
        Endpoint(V4, port)


def test_endpoints_of_one_family_are_ordered_by_address_and_port() -> None:
    ends = [Endpoint.parse(text) for text in ("192.0.2.2:1", "192.0.2.1:9", "192.0.2.1:10")]
    assert [str(end) for end in sorted(ends)] == ["192.0.2.1:9", "192.0.2.1:10", "192.0.2.2:1"]


# --- ranges of ports --------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["1-65535", "20000-29999", "80-80"])
def test_a_range_is_printed_as_it_is_read(text: str) -> None:
    assert str(PortRange.parse(text)) == text


def test_blanks_around_the_dash_are_ignored() -> None:
    assert PortRange.parse("20000 - 29999") == PortRange(20000, 29999)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "-",
        "80",
        "80-",
        "-80",
        "80:90",
        "0-80",
        "90-80",
        "1-65536",
        "a-b",
        "1-2-3",
        "\u0661-\u0662",
        "²-³",
    ],
)
def test_what_is_no_range_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"range|first-last"):
        PortRange.parse(text)


def test_a_range_holds_both_its_ends() -> None:
    ports = PortRange(20000, 29999)
    assert 20000 in ports
    assert 29999 in ports
    assert 19999 not in ports
    assert 30000 not in ports


@pytest.mark.parametrize(
    ("other", "overlaps"),
    [
        (PortRange(1, 19999), False),
        (PortRange(1, 20000), True),
        (PortRange(29999, 65535), True),
        (PortRange(30000, 65535), False),
        (PortRange(25000, 25000), True),
        (PortRange(1, 65535), True),
    ],
)
def test_ranges_overlap_when_they_share_a_port(other: PortRange, overlaps: bool) -> None:
    ports = PortRange(20000, 29999)
    assert ports.overlaps(other) is overlaps
    assert other.overlaps(ports) is overlaps


# --- networks ---------------------------------------------------------------------------------


def test_an_address_is_found_in_networks_of_its_family_only() -> None:
    networks = (ipaddress.ip_network("192.0.2.0/24"), ipaddress.ip_network("2001:db8::/32"))
    assert contains_any(networks, V4)
    assert contains_any(networks, V6)
    assert not contains_any(networks, ipaddress.IPv4Address("192.0.3.0"))
    assert not contains_any(networks[:1], ipaddress.IPv6Address("::ffff:192.0.2.1"))
    assert not contains_any((), V4)
