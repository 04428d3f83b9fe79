"""A client and a server without Slim, and the same with it: what is compared call by call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from support.two_hosts import Workload

GREETING_PORT = 8000
"""Of the greeting servers; plus the version of the Internet protocol."""
ANYWHERE = {4: "0.0.0.0", 6: "::"}
CONTENDERS = ("native", "brokered")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A client on host a, a server on host b and the address to reach it at."""

    is_brokered: bool
    client: Workload
    server: Workload
    address: str
    anywhere: str
    port: int

    def call(self, probe: Any, *more: object) -> Any:
        """Run a probe in the client's container against the greeting server."""
        return self.client.call(probe, self.address, self.port, *more)
