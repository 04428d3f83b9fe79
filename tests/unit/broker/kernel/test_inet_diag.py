"""Messages of sock_diag, packed and unpacked without a kernel."""

from __future__ import annotations

import socket
import struct

from slim.broker.endpoints import Endpoint, PortRange
from slim.broker.kernel.inet_diag import (
    NLMSG_DONE,
    SOCK_DIAG_BY_FAMILY,
    TCPDIAG_GETSOCK,
    TcpSocket,
    pack_destroy,
    pack_dump,
    pack_lookup,
    unpack_cookies,
    unpack_error,
    unpack_kind,
    unpack_socket,
)

LOCAL, PEER = Endpoint.parse("10.0.0.1:8080"), Endpoint.parse("10.0.0.2:40000")
COOKIE = 0x1122334455667788


def message(cookie: int, *, kind: int = TCPDIAG_GETSOCK, attributes: bytes = b"") -> bytes:
    """One socket as the kernel describes it (struct inet_diag_msg)."""
    body = (
        struct.pack("=BBBB", socket.AF_INET, 1, 0, 0)
        + struct.pack("!HH", LOCAL.port, PEER.port)
        + LOCAL.address.packed.ljust(16, b"\0")
        + PEER.address.packed.ljust(16, b"\0")
        + struct.pack("=IQ", 7, cookie)
        + struct.pack("=IIIII", 0, 0, 0, 1000, 4711)
        + attributes
    )
    raw = struct.pack("=IHHII", 16 + len(body), kind, 2, 1, 0) + body
    return raw.ljust((len(raw) + 3) & ~3, b"\0")


def test_a_socket_is_unpacked_whole() -> None:
    data = message(COOKIE)
    assert unpack_socket(data, 0, len(data), {}) == TcpSocket(
        socket.AF_INET, 1, LOCAL, PEER, COOKIE, 1000, 4711, 7
    )


def test_messages_of_different_lengths_follow_each_other() -> None:
    attribute = struct.pack("=HHB", 5, 8, 3)
    data = message(1, attributes=attribute) + message(2) + message(3, attributes=attribute * 1)
    found = list(unpack_cookies(data))
    assert [cookie for _, _, cookie in found] == [1, 2, 3]
    assert [unpack_socket(data, start, size, {}).cookie for start, size, _ in found] == [1, 2, 3]


def test_what_is_behind_the_last_whole_message_is_not_read() -> None:
    assert [cookie for _, _, cookie in unpack_cookies(message(1) + message(2)[:40])] == [1]
    done = struct.pack("=IHHIIi", 20, NLMSG_DONE, 2, 1, 0, 0)
    assert [cookie for _, _, cookie in unpack_cookies(message(1) + done)] == [1]
    assert list(unpack_cookies(message(1, kind=NLMSG_DONE))) == []


def test_tcp_info_is_found_behind_other_attributes() -> None:
    info = bytearray(232)
    struct.pack_into("=I", info, 68, 1234)
    struct.pack_into("=I", info, 100, 5)
    struct.pack_into("=QQ", info, 120, 1001, 2002)
    attributes = struct.pack("=HHBxxx", 5, 8, 3) + struct.pack("=HH", 4 + len(info), 2) + info
    data = message(COOKIE, attributes=attributes)
    found = unpack_socket(data, 0, len(data), {})
    assert (found.rtt_us, found.retransmits) == (1234, 5)
    assert (found.bytes_acked, found.bytes_received) == (1001, 2002)


def test_a_tcp_info_of_an_old_kernel_is_passed_over() -> None:
    attributes = struct.pack("=HH", 4 + 104, 2) + bytes([0xFF] * 104)
    data = message(COOKIE, attributes=attributes)
    assert unpack_socket(data, 0, len(data), {}).rtt_us == 0


def test_an_attribute_of_no_length_does_not_hold_us_up() -> None:
    data = message(COOKIE, attributes=bytes(8))
    assert unpack_socket(data, 0, len(data), {}).cookie == COOKIE


def test_a_lookup_names_the_socket() -> None:
    request = pack_lookup(socket.AF_INET6, LOCAL, None, COOKIE)
    length, kind, _, _, _ = struct.unpack_from("=IHHII", request)
    assert (length, kind) == (len(request), SOCK_DIAG_BY_FAMILY)
    ports = struct.unpack_from("!HH", request, 24)
    # An IPv4 address in an AF_INET6 socket is a mapped one.
    assert ports == (8080, 0)
    assert request[28:44] == b"\0" * 10 + b"\xff\xff" + LOCAL.address.packed
    assert request[44:60] == bytes(16)
    assert struct.unpack_from("=IQ", request, 60) == (0, COOKIE)


def test_destroying_names_the_device_as_well() -> None:
    found = TcpSocket(socket.AF_INET, 1, LOCAL, PEER, COOKIE, 0, 0, 7)
    assert struct.unpack_from("=IQ", pack_destroy(found), 60) == (7, COOKIE)


def test_a_dump_in_a_range_carries_its_condition() -> None:
    plain = pack_dump(0xFFF, None, info=False)
    ranged = pack_dump(0xFFF, PortRange(20000, 29999), info=False)
    assert len(plain) == 16 + 60
    assert ranged[16:76] == plain[16:]
    # INET_DIAG_BC_S_GE and INET_DIAG_BC_S_LE, each with its port in the operation behind it.
    assert struct.unpack_from("=HH", ranged, 76) == (20, 1)
    operations = list(struct.iter_unpack("=BBH", ranged[80:]))
    assert operations == [(2, 8, 20), (0, 0, 20000), (3, 8, 12), (0, 0, 29999)]


def test_errors_are_errnos() -> None:
    refused = struct.pack("=IHHIIi", 36, 2, 0, 1, 0, -2).ljust(36, b"\0")
    assert unpack_kind(refused) == 2
    assert unpack_error(refused) == 2
