"""Outbound flows: what control answered about (workload, source, destination), for a while.

    unknown --LookUp--> asked --answer--> known --lifetime, Invalidate, refusal--> unknown

A flow is good until its lifetime ends. The table is bounded: the oldest answers go first, which
costs one more question to control.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from slim.broker.endpoints import contains_any

if TYPE_CHECKING:
    from collections.abc import Callable

    from slim.broker.endpoints import Address, Endpoint, Network
    from slim.broker.shaping import Shaping

MAX_FLOWS = 65_536


@dataclass(frozen=True, slots=True)
class FlowKey:
    """Who asks for what. `source` is set only if the program bound an address."""

    workload: int
    source: Address | None
    destination: Endpoint


@dataclass(frozen=True, slots=True)
class FastFlow:
    """Connect to `host` with a record that names `flow`, sealed for `peer`."""

    source: Address
    host: Endpoint
    flow: int
    peer: str
    fallback_lawful: bool
    rule: str
    expires_s: float
    shaping: Shaping | None = None
    peer_rate: int | None = None
    """What the other end wants to receive at most, in bytes per second."""


@dataclass(frozen=True, slots=True)
class OverlayFlow:
    """Leave the connection on the overlay, for `reason`."""

    reason: str
    rule: str
    expires_s: float
    shaping: Shaping | None = None


@dataclass(frozen=True, slots=True)
class DeniedFlow:
    """Policy refuses with `errno`."""

    errno: int
    rule: str
    expires_s: float


Flow: TypeAlias = FastFlow | OverlayFlow | DeniedFlow


class FlowTable:
    """Known flows. Times are CLOCK_MONOTONIC seconds, given by the caller."""

    def __init__(self, limit: int = MAX_FLOWS) -> None:
        self._flows: OrderedDict[FlowKey, Flow] = OrderedDict()
        self._limit = limit

    def __len__(self) -> int:
        return len(self._flows)

    def get(self, key: FlowKey, now_s: float) -> Flow | None:
        flow = self._flows.get(key)
        if flow is not None and flow.expires_s <= now_s:
            del self._flows[key]
            return None
        return flow

    def put(self, key: FlowKey, flow: Flow) -> None:
        self._flows[key] = flow
        self._flows.move_to_end(key)
        while len(self._flows) > self._limit:
            self._flows.popitem(last=False)

    def drop(self, key: FlowKey) -> None:
        self._flows.pop(key, None)

    def drop_destination(self, address: Address, port: int) -> None:
        """Forget flows to one address; to every port of it when `port` is 0."""
        self._drop_where(
            lambda key: key.destination.address == address and (port in (0, key.destination.port))
        )

    def drop_workload(self, workload: int) -> None:
        self._drop_where(lambda key: key.workload == workload)

    def drop_into(self, networks: tuple[Network, ...]) -> None:
        """Forget flows to every address in the networks."""
        self._drop_where(lambda key: contains_any(networks, key.destination.address))

    def drop_all(self) -> None:
        self._flows.clear()

    def _drop_where(self, matches: Callable[[FlowKey], bool]) -> None:
        for key in [key for key in self._flows if matches(key)]:
            del self._flows[key]
