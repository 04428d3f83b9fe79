"""What slimd lends to discovery backends: discovery.DiscoveryContext over the registry and keys."""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING

from slim.broker.errors import SyscallError
from slim.broker.kernel.namespaces import in_namespace
from slim.broker.peers import pki

if TYPE_CHECKING:
    from slim.broker.endpoints import Address, Endpoint
    from slim.broker.peers.pki import HostCredentials
    from slim.broker.registry import Registry


class Lending:
    """See slim.broker.discovery.DiscoveryContext."""

    def __init__(
        self,
        host: str,
        control: Endpoint | None,
        rendezvous_port: int,
        registry: Registry,
        credentials: HostCredentials | None,
    ) -> None:
        self.host = host
        self.control = control
        self.rendezvous_port = rendezvous_port
        self._registry = registry
        self._credentials = credentials

    @property
    def certificate(self) -> bytes:
        return self._credentials.certificate_der if self._credentials else b""

    def udp_socket(self, workload: int, local: Address, port: int) -> socket.socket:
        known = self._registry.workloads.get(workload)
        if known is None:
            raise SyscallError("socket", errno.ENOENT, "the workload is gone")
        family = socket.AF_INET6 if local.version == 6 else socket.AF_INET
        with in_namespace(known.netns_fd):
            sock = socket.socket(family, socket.SOCK_DGRAM)
        try:
            sock.setblocking(False)
            sock.bind((str(local), port))
        except OSError:
            sock.close()
            raise
        return sock

    def sign(self, data: bytes) -> bytes:
        if self._credentials is None:
            return b""
        return pki.sign_statement(self._credentials.key, data)

    def verify(
        self, certificate: bytes, signature: bytes, data: bytes, speaks_for: Address
    ) -> str | None:
        if self._credentials is None:
            return None
        identity = pki.verify_statement(self._credentials.authorities, certificate, signature, data)
        if identity is None or not identity.speaks_for(speaks_for):
            return None
        return identity.host
