"""Discovery: which slimd answers for an overlay address. The interface of the backends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import socket

    from slim.broker.endpoints import Address, Endpoint


@dataclass(frozen=True, slots=True)
class Located:
    """What a backend found out about an address."""

    host: str | None
    """Name that the slimd's certificate must bear; None: any certified one."""
    control: Endpoint | None
    """Where its control channel listens; None: nobody brokers that address."""
    lifetime_s: float


class DiscoveryContext(Protocol):
    """What slimd lends to a backend."""

    host: str
    control: Endpoint | None
    """This host's own control endpoint, to announce; None: there is no control channel."""
    rendezvous_port: int
    certificate: bytes
    """This host's certificate, DER."""

    def udp_socket(self, workload: int, local: Address | None, port: int) -> socket.socket:
        """A non-blocking UDP socket in the workload's network namespace, bound; caller owns it.

        OSError as from bind(2), LookupError when the workload is gone.
        """
        ...

    def sign(self, data: bytes) -> bytes:
        """A signature of this host's key over `data`."""
        ...

    def verify(
        self, certificate: bytes, signature: bytes, data: bytes, speaks_for: Address
    ) -> str | None:
        """The name of the host that signed; None unless its certificate is from our authority,
        valid now, and names a network that holds `speaks_for`."""
        ...


class DiscoveryBackend(Protocol):
    """Finds slimds; runs inside control's event loop and never blocks it."""

    name: str

    async def locate(self, workload: int, destination: Address) -> Located | None:
        """Who answers for the address, as seen from that workload; None: no opinion."""
        ...

    def workload_added(self, workload: int, addresses: tuple[Address, ...]) -> None:
        """A workload of this host appeared."""
        ...

    def workload_removed(self, workload: int) -> None:
        """It is gone."""
        ...

    def close(self) -> None:
        """slimd stops."""
        ...
