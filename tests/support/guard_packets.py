"""Hand-made segments on the wire (raw IPv4): what a stranger on the host network can send."""

from __future__ import annotations

import socket
import struct
from ipaddress import ip_address
from typing import TYPE_CHECKING

from support.siphash import siphash

if TYPE_CHECKING:
    from support.guard_host import Inside

SYN, ACK = 2, 16


def option(
    source: tuple[str, int],
    destination: tuple[str, int],
    sequence: int,
    *,
    flow: int,
    key: bytes,
    key_id: int = 1,
    overlay_port: int = 1234,
) -> bytes:
    """The 20 bytes of a valid option for this SYN."""
    mapped = bytes(10) + b"\xff\xff"
    sealed = (
        mapped
        + ip_address(source[0]).packed
        + mapped
        + ip_address(destination[0]).packed
        + struct.pack(
            ">IHHIHBB", sequence, source[1], destination[1], flow, overlay_port, key_id, 0
        )
    )
    head = struct.pack(">BBHIHBB", 253, 20, 0x534C, flow, overlay_port, key_id, 0)
    return head + siphash(key, sealed)


def send(
    _inside: Inside,
    source: tuple[str, int],
    destination: tuple[str, int],
    sequence: int,
    acknowledged: int,
    flags: int,
    options: bytes,
    count: int = 1,
) -> None:
    """Send the segment; with a count each with the next option's MAC, for brute force."""
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP) as raw:
        raw.bind((source[0], 0))
        for number in range(count):
            sent = options
            if number:
                sent = options[:-8] + number.to_bytes(8, "big")
            raw.sendto(
                _segment(source, destination, sequence, acknowledged, flags, sent),
                (destination[0], 0),
            )


def _segment(
    source: tuple[str, int],
    destination: tuple[str, int],
    sequence: int,
    acknowledged: int,
    flags: int,
    options: bytes,
) -> bytes:
    offset = (20 + len(options)) // 4
    header = struct.pack(
        ">HHIIBBHHH",
        source[1],
        destination[1],
        sequence,
        acknowledged,
        offset << 4,
        flags,
        65535,
        0,
        0,
    )
    segment = header + options
    pseudo = (
        ip_address(source[0]).packed
        + ip_address(destination[0]).packed
        + struct.pack(">BBH", 0, 6, len(segment))
    )
    total = sum(struct.unpack(f">{len(pseudo + segment) // 2}H", pseudo + segment))
    total = (total & 0xFFFF) + (total >> 16)
    total = (total & 0xFFFF) + (total >> 16)
    return segment[:16] + struct.pack(">H", ~total & 0xFFFF) + segment[18:]
