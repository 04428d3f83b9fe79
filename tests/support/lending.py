"""What slimd lends to discovery backends, over loopback addresses and without real certificates."""

from __future__ import annotations

import hashlib
import hmac
import socket
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from slim.broker.endpoints import Address, Endpoint, Network


@dataclass(kw_only=True)
class LoopbackContext:
    """A slim.broker.discovery.DiscoveryContext; the workload's namespace is the test's own."""

    host: str = "a"
    control: Endpoint | None = None
    rendezvous_port: int = 7947
    certificates: Mapping[str, list[Network]] = field(default_factory=dict)
    """Which hosts the authority knows, and the networks they may speak for."""
    failures: list[OSError] = field(default_factory=list)
    """Raised by the next calls of udp_socket, the first one first."""
    sockets: list[socket.socket] = field(default_factory=list)
    """All that were lent; their owner closes them."""

    @property
    def certificate(self) -> bytes:
        return b"certificate of " + self.host.encode()

    def udp_socket(self, workload: int, local: Address, port: int) -> socket.socket:
        if self.failures:
            raise self.failures.pop(0)
        family = socket.AF_INET6 if local.version == 6 else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_DGRAM)
        try:
            sock.setblocking(False)
            sock.bind((str(local), port))
        except OSError:
            sock.close()
            raise
        self.sockets.append(sock)
        return sock

    def sign(self, data: bytes) -> bytes:
        return sign_as(self.host, data)

    def verify(
        self, certificate: bytes, signature: bytes, data: bytes, speaks_for: Address
    ) -> str | None:
        host = certificate.removeprefix(b"certificate of ").decode()
        if not hmac.compare_digest(signature, sign_as(host, data)):
            return None
        if not any(speaks_for in network for network in self.certificates.get(host, [])):
            return None
        return host


def sign_as(host: str, data: bytes) -> bytes:
    """The signature that the host's key makes; as long as one of ECDSA."""
    return hmac.digest(host.encode(), data, hashlib.sha512) + bytes(8)
