"""What discovery backends are, what they find, and what slimd lends them (see hookspecs).

A backend says which slimd answers for an overlay address. It never says what policy allows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import socket

    from slim.broker.endpoints import Address, Endpoint


@dataclass(frozen=True, slots=True)
class Located:
    """Who answers for an overlay address, and for how long that may be believed."""

    host: str | None
    """The name that the slimd at `control` must prove by its certificate; None: any trusted one."""
    control: Endpoint | None
    """Its control channel. None: nobody brokers that address, which may be remembered too."""
    lifetime_s: float


class DiscoveryContext(Protocol):
    """What slimd lends to discovery backends; all calls are made in control's event loop."""

    @property
    def host(self) -> str:
        """This host's name, as in its certificate."""
        ...

    @property
    def control(self) -> Endpoint | None:
        """Where other slimds reach this one; None: it has no control channel."""
        ...

    @property
    def certificate(self) -> bytes:
        """This host's certificate, DER."""
        ...

    @property
    def rendezvous_port(self) -> int:
        """The reserved overlay port of `discovery.rendezvous_port`."""
        ...

    def udp_socket(self, workload: int, local: Address, port: int) -> socket.socket:
        """A non-blocking UDP socket of the workload's network namespace, bound.

        :param workload: the workload's SO_NETNS_COOKIE.
        :param local: where it is bound; 0.0.0.0 or :: for any address, and always the family.
        :param port: 0 for any.

        The caller owns the socket. OSError as from socket(2) and bind(2), LookupError when the
        workload is gone.
        """
        ...

    def sign(self, data: bytes) -> bytes:
        """Sign with the key of `certificate`."""
        ...

    def verify(
        self, certificate: bytes, signature: bytes, data: bytes, speaks_for: Address
    ) -> str | None:
        """The name of the host that signed, or None when it is not to be believed.

        None unless the certificate (DER, as received) chains to our authority, is valid now and
        may speak for that overlay address, and the signature fits. Never raises, whatever the
        bytes.
        """
        ...


class DiscoveryBackend(Protocol):
    """One way of finding out who answers for an overlay address.

    All calls are made in control's event loop; none but `locate` may wait for anything.
    """

    @property
    def name(self) -> str:
        """What the configuration calls it."""
        ...

    async def locate(self, workload: int, destination: Address) -> Located | None:
        """Who answers for `destination`, asked for that workload; None: no opinion.

        The program waits for a few milliseconds only, then uses the overlay if it may; the
        answer is of use to its next connection. Cancellable at any time.

        :param workload: the asking workload's SO_NETNS_COOKIE.
        :param destination: an overlay address that is not one of this host's.
        """
        ...

    def workload_added(self, workload: int, addresses: tuple[Address, ...]) -> None:
        """A workload is on this host with these overlay addresses.

        Called again with the new addresses whenever they change.
        """
        ...

    def workload_removed(self, workload: int) -> None:
        """It is gone, and so is its network namespace."""
        ...

    def close(self) -> None:
        """Let go of everything; nothing is called after this."""
        ...
