"""Socket addresses as bytes: against the kernel's, and against what programs pass."""

from __future__ import annotations

import ctypes
import socket
import struct

import pytest

from slim.broker.endpoints import Endpoint
from slim.broker.kernel import sockaddr

IPV4 = struct.pack("=H", socket.AF_INET) + bytes.fromhex("1538 0a010002") + bytes(8)
IPV6 = (
    struct.pack("=H", socket.AF_INET6)
    + bytes.fromhex("1538 00000000 fd000000000000000000000000000002")
    + bytes(4)
)


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (IPV4, "10.1.0.2:5432"),
        (IPV6, "[fd00::2]:5432"),
        (IPV6[:24], "[fd00::2]:5432"),
        (IPV4 + bytes(100), "10.1.0.2:5432"),
        (IPV6 + bytes(100), "[fd00::2]:5432"),
    ],
)
def test_what_the_kernel_takes_is_decoded(raw: bytes, text: str) -> None:
    assert sockaddr.decode(raw) == Endpoint.parse(text)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\x02",
        IPV4[:15],
        IPV6[:23],
        bytes(16),
        struct.pack("=H", socket.AF_UNIX) + b"/run/x",
        struct.pack("=H", 0xFFFF) + bytes(126),
    ],
    ids=["empty", "one byte", "short ipv4", "short ipv6", "unspec", "unix", "no family"],
)
def test_everything_else_is_no_endpoint(raw: bytes) -> None:
    assert sockaddr.decode(raw) is None


def test_flow_label_and_scope_do_not_matter() -> None:
    raw = bytearray(IPV6)
    raw[4:8] = b"\xff" * 4
    raw[24:28] = b"\xff" * 4
    assert sockaddr.decode(bytes(raw)) == Endpoint.parse("[fd00::2]:5432")


def test_family_of_too_few_bytes_is_unspec() -> None:
    assert sockaddr.family_of(b"\x02") == socket.AF_UNSPEC
    assert sockaddr.family_of(IPV4) == socket.AF_INET


@pytest.mark.parametrize(
    ("text", "family", "length"),
    [
        ("10.1.0.2:5432", socket.AF_INET, 16),
        ("[fd00::2]:5432", socket.AF_INET6, 28),
        ("10.1.0.2:5432", socket.AF_INET6, 28),
        ("255.255.255.255:65535", socket.AF_INET, 16),
        ("[::]:0", socket.AF_INET6, 28),
    ],
)
def test_encoding_and_decoding_are_inverse(text: str, family: int, length: int) -> None:
    raw = sockaddr.encode(Endpoint.parse(text), family)
    assert len(raw) == length
    assert sockaddr.family_of(raw) == family
    assert sockaddr.decode(raw) == Endpoint.parse(text)


def test_ipv4_in_an_ipv6_address_is_mapped() -> None:
    raw = sockaddr.encode(Endpoint.parse("10.1.0.2:1"), socket.AF_INET6)
    assert raw[8:24] == bytes(10) + b"\xff\xff\x0a\x01\x00\x02"


def test_ipv6_does_not_fit_an_ipv4_socket() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        sockaddr.encode(Endpoint.parse("[fd00::2]:1"), socket.AF_INET)


@pytest.mark.parametrize(
    ("family", "loopback"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")]
)
def test_the_kernels_own_bytes_are_the_same(family: int, loopback: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.bind((loopback, 0))
        buffer = ctypes.create_string_buffer(sockaddr.MAX_SOCKADDR)
        length = ctypes.c_int(sockaddr.MAX_SOCKADDR)
        assert libc.getsockname(sock.fileno(), buffer, ctypes.byref(length)) == 0
        endpoint = sockaddr.from_python(sock.getsockname())
    raw = buffer.raw[: length.value]
    assert sockaddr.decode(raw) == endpoint
    assert sockaddr.encode(endpoint, family) == raw


@pytest.mark.parametrize(
    ("text", "family", "name"),
    [
        ("10.1.0.2:80", socket.AF_INET, ("10.1.0.2", 80)),
        ("10.1.0.2:80", socket.AF_INET6, ("::ffff:10.1.0.2", 80)),
        ("[fd00::2]:80", socket.AF_INET6, ("fd00::2", 80)),
    ],
)
def test_names_of_the_socket_module(text: str, family: int, name: tuple[str, int]) -> None:
    endpoint = Endpoint.parse(text)
    assert sockaddr.for_python(endpoint, family) == name
    assert sockaddr.from_python(name) == endpoint


def test_a_zone_is_left_out() -> None:
    assert sockaddr.from_python(("fe80::1%lo", 80, 0, 1)) == Endpoint.parse("[fe80::1]:80")
