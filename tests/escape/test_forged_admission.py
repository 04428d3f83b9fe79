"""Forged, replayed and guessed options, and handshakes without a SYN, from the host network."""

from __future__ import annotations

from ipaddress import ip_address
from typing import TYPE_CHECKING

import pytest

from slim.broker.endpoints import Endpoint
from slim.broker.guard.layouts import InboundFlow
from support import guard_calls as calls
from support import guard_packets as packets
from support.guard_host import FLOW, KEY, PEER, WORKLOAD, Host, two_hosts
from support.polling import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_netns]
PORT = 20500
FROM, TO = ("192.0.2.1", 5000), ("192.0.2.2", PORT)
SEQUENCE = 0x01020304


@pytest.fixture(scope="module")
def hosts() -> Iterator[tuple[Host, Host]]:
    with two_hosts() as pair:
        pair[1].guard("add_opening_key", PEER, 1, KEY, 300)
        overlay = Endpoint(ip_address("10.77.2.2"), 80)
        for port in (PORT, PORT + 1):
            host = Endpoint(ip_address(TO[0]), port)
            pair[1].call(calls.listen, f"L{port}", 4, host, overlay)
        flow = InboundFlow(
            flow=FLOW,
            peer=PEER,
            workload=WORKLOAD,
            source=ip_address("10.77.1.1"),
            listener=overlay,
            host_port=PORT,
        )
        pair[1].guard("add_inbound", flow)
        yield pair


def expect(hosts: tuple[Host, Host], counter: str, *segment: object) -> None:
    """The segment, sent by the client, is counted as that, and nothing else is admitted."""
    client, server = hosts
    before = server.call(calls.counters)
    client.call(packets.send, *segment)
    eventually(lambda: server.call(calls.counters)[counter] > before[counter], counter)
    if counter != "ADMITTED":
        assert server.call(calls.counters)["ADMITTED"] == before["ADMITTED"]


def valid(**changes: object) -> bytes:
    arguments = {"flow": FLOW, "key": KEY} | changes
    return packets.option(FROM, TO, SEQUENCE, **arguments)  # type: ignore[arg-type]


def test_the_hand_made_option_is_valid(hosts: tuple[Host, Host]) -> None:
    expect(hosts, "ADMITTED", FROM, TO, SEQUENCE, 0, packets.SYN, valid())


@pytest.mark.parametrize(
    ("counter", "options"),
    [
        ("DROPPED_NO_OPTION", b""),
        ("DROPPED_NO_OPTION", b"\xfd\x14\x53\x4c"),
        ("DROPPED_NO_OPTION", b"\x02\x00\x00\x00"),
        ("DROPPED_NO_OPTION", b"\x00\x00\x00\x00" + valid()),
        ("DROPPED_FLOW", valid(flow=FLOW + 1)),
        ("DROPPED_KEY", valid(key_id=9)),
        ("DROPPED_MAC", valid(key=bytes(16))),
        ("DROPPED_MAC", valid()[:-1] + bytes([valid()[-1] ^ 1])),
        ("DROPPED_MAC", valid()[:8] + b"\x11\x11" + valid()[10:]),
    ],
    ids=[
        "none",
        "cut off",
        "length 0 before it",
        "behind the end",
        "another flow",
        "unknown key",
        "another key",
        "flipped bit",
        "another port",
    ],
)
def test_a_wrong_option_is_dropped(hosts: tuple[Host, Host], counter: str, options: bytes) -> None:
    expect(hosts, counter, FROM, TO, SEQUENCE, 0, packets.SYN, options)


@pytest.mark.parametrize(
    ("source", "destination", "sequence", "counter"),
    [
        (("192.0.2.1", 5001), TO, SEQUENCE, "DROPPED_MAC"),
        (FROM, TO, SEQUENCE + 1, "DROPPED_MAC"),
        (FROM, ("192.0.2.2", PORT + 1), SEQUENCE, "DROPPED_FLOW"),
    ],
)
def test_a_sniffed_option_is_worth_nothing_elsewhere(
    hosts: tuple[Host, Host],
    source: tuple[str, int],
    destination: tuple[str, int],
    sequence: int,
    counter: str,
) -> None:
    expect(hosts, counter, source, destination, sequence, 0, packets.SYN, valid())


def test_guessing_the_mac_admits_nobody(hosts: tuple[Host, Host]) -> None:
    client, server = hosts
    before = server.call(calls.counters)
    options = valid(key=bytes(16))
    client.call(packets.send, ("192.0.2.1", 5002), TO, 7, 0, packets.SYN, options, 5000)
    eventually(
        lambda: server.call(calls.counters)["DROPPED_MAC"] >= before["DROPPED_MAC"] + 4000,
        "thousands of guesses were seen",
    )
    assert server.call(calls.counters)["ADMITTED"] == before["ADMITTED"]


@pytest.mark.parametrize("cookies", ["0", "2"])
def test_an_ack_without_an_admitted_syn_is_dropped(hosts: tuple[Host, Host], cookies: str) -> None:
    hosts[1].call(calls.sysctl, "net.ipv4.tcp_syncookies", cookies)
    try:
        segment = (("192.0.2.1", 5003), TO, SEQUENCE, 12345, packets.ACK, b"")
        expect(hosts, "DROPPED_ACK", *segment)
    finally:
        hosts[1].call(calls.sysctl, "net.ipv4.tcp_syncookies", "1")
