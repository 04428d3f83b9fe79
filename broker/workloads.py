"""Workloads as traps sees them: a network namespace on the overlay, and what is true of it.

    attached --AttachWorkload again--> attached (new addresses, isolation) --DetachWorkload--> gone

Keyed by SO_NETNS_COOKIE, which is never reused while the machine runs.
"""

from __future__ import annotations

import functools
import ipaddress
import os
import socket
from typing import TYPE_CHECKING

from slim.broker.endpoints import Address, Network, contains_any, from_packed16
from slim.broker.kernel.namespaces import in_namespace
from slim.broker.kernel.socket_options import FreshOptions

if TYPE_CHECKING:
    from slim.broker.local.states import WorkloadState

KNOWN_ADDRESSES = 4096
SYNTHETIC_UID_BASE = 0x70000000
"""Owner of a workload's host sockets: above any real user, so SO_REUSEPORT groups stay apart."""


class Workload:
    """One workload; owns the fd of its namespace."""

    def __init__(self, state: WorkloadState, netns_fd: int) -> None:
        self._netns_fd = netns_fd
        self._fresh_options: dict[int, FreshOptions] = {}
        self.update(state)

    def update(self, state: WorkloadState) -> None:
        self.state = state
        self.cookie = state.cookie
        self.networks: tuple[Network, ...] = tuple(
            network_from_packed(packed, length) for packed, length in state.networks
        )
        self.addresses: frozenset[Address] = frozenset(
            from_packed16(packed) for packed in state.addresses
        )
        self.uid = SYNTHETIC_UID_BASE + state.index
        # Asked for every connect; ipaddress takes microseconds for it.
        self.is_overlay = functools.lru_cache(KNOWN_ADDRESSES)(
            functools.partial(contains_any, self.networks)
        )

    def make_socket(self, domain: int) -> socket.socket:
        """A TCP socket born in the workload's namespace."""
        with in_namespace(self._netns_fd):
            return socket.socket(domain, socket.SOCK_STREAM, socket.IPPROTO_TCP)

    def fresh_options(self, domain: int) -> FreshOptions:
        """The options of a socket that nobody has touched; read once per family."""
        options = self._fresh_options.get(domain)
        if options is None:
            with self.make_socket(domain) as sock:
                options = self._fresh_options[domain] = FreshOptions(sock, domain)
        return options

    def namespace_fd(self) -> int:
        """The namespace's fd, lent."""
        return self._netns_fd

    def close(self) -> None:
        os.close(self._netns_fd)


def network_from_packed(packed: bytes, length: int) -> Network:
    """A network from its 16-byte address and its prefix length in the family's own width."""
    address = from_packed16(packed)
    return ipaddress.ip_network((address.packed, length), strict=False)
