"""Probes that count what they do themselves."""

from __future__ import annotations

import socket

from support.probes.peers import greeted


def visit_often(address: str, port: int, times: int) -> list[str]:
    """Connect and leave so many times; the names that this end had."""
    names = []
    for _ in range(times):
        with socket.create_connection((address, port), timeout=10) as sock:
            names.append(greeted(sock)["client_name"])
    return names


def try_often(address: str, port: int, times: int) -> int:
    """How many of so many connects were refused with EACCES."""
    refused = 0
    for _ in range(times):
        try:
            socket.create_connection((address, port), timeout=10).close()
        except PermissionError:
            refused += 1
    return refused
