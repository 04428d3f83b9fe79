"""A client of memcached's text protocol, which needs no library."""

from __future__ import annotations

import os
import socket


def store_and_fetch(address: str, port: int, connections: int, values: int) -> int:
    """Set on one connection, get on all others; gives how many values came back as they were."""
    socks = [socket.create_connection((address, port), timeout=10) for _ in range(connections)]
    files = [sock.makefile("rwb") for sock in socks]
    intact = 0
    for number in range(values):
        value = os.urandom(2000)
        writer, reader = files[number % connections], files[(number + 1) % connections]
        writer.write(b"set key%d 0 0 %d\r\n%b\r\n" % (number, len(value), value))
        writer.flush()
        assert writer.readline() == b"STORED\r\n"
        reader.write(b"get key%d\r\n" % number)
        reader.flush()
        assert reader.readline() == b"VALUE key%d 0 2000\r\n" % number
        intact += reader.read(2002) == value + b"\r\n"
        assert reader.readline() == b"END\r\n"
    for file, sock in zip(files, socks, strict=True):
        file.close()
        sock.close()
    return intact
