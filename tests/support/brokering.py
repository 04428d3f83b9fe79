"""Fakes of what control's parts know of each other, and workloads without a namespace."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from slim.broker.config import OverlayConfig
from slim.broker.decisions import DEFAULT_VERDICT, Direction, FlowRequest, Identity, Verdict
from slim.broker.endpoints import Endpoint, packed16, parse_address
from slim.broker.errors import ControlError
from slim.broker.local import messages, states
from slim.broker.registry import Registry, Workload
from slim.broker.shaping_rules import ShapingRules
from slim.broker.slots import SlotStore
from slim.broker.sources import SLOT_BYTES, Sources

if TYPE_CHECKING:
    import ipaddress
    from collections.abc import Callable

    from slim.broker.plugin_manager import Plugins


@dataclass
class FakePlugins:
    """Policy as a function of the request; notes what it was asked."""

    policy: Callable[[FlowRequest], Verdict] = lambda _: DEFAULT_VERDICT
    isolated: set[Direction] = field(default_factory=set)
    asked: list[FlowRequest] = field(default_factory=list)
    shaping: ShapingRules = field(default_factory=ShapingRules)

    def decide(self, request: FlowRequest) -> Verdict:
        self.asked.append(request)
        return self.policy(request)

    def isolates(self, workload: Identity, direction: Direction) -> bool:
        return direction in self.isolated


@dataclass
class FakeTraps:
    """Acknowledges everything, or is away."""

    requests: list[Any] = field(default_factory=list)
    is_away: bool = False

    async def request(self, make: Callable[[int], messages.ToTraps]) -> None:
        if self.is_away:
            raise ControlError("traps is not running")
        self.requests.append(make(len(self.requests) + 1))


def make_sources() -> Sources:
    """An empty table in a memfd of its own."""
    return Sources(SlotStore.create("test-sources", slot_bytes=SLOT_BYTES, slots=16))


def registry(
    plugins: FakePlugins, *networks: ipaddress.IPv4Network | ipaddress.IPv6Network
) -> Registry:
    """A registry with one overlay of these networks."""
    overlay = OverlayConfig(name="blue", networks=networks, unverified=None)
    return Registry((overlay,), cast("Plugins", plugins))


def state(
    cookie: int,
    *addresses: str,
    name: str = "",
    isolated_ingress: bool = False,
    isolated_egress: bool = False,
) -> states.WorkloadState:
    return states.WorkloadState(
        cookie=cookie,
        name=name or f"workload-{cookie}",
        namespace="default",
        labels={"app": f"app-{cookie}"},
        overlay="blue",
        networks=[(packed16(parse_address("10.1.0.0")), 16)],
        addresses=[packed16(parse_address(address)) for address in addresses],
        index=cookie,
        isolated_ingress=isolated_ingress,
        isolated_egress=isolated_egress,
        fail_mode="open",
        prepared=None,
    )


def add_workload(to: Registry, described: states.WorkloadState) -> Workload:
    """A workload whose namespace is never looked at."""
    return to.add(described, os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))


def listening(
    workload: Workload, port: int, host: str, address: str = "0.0.0.0", *, dual_stack: bool = False
) -> messages.ListenerUp:
    """Let the workload listen on a port, with that host endpoint behind it."""
    at = Endpoint.parse(host)
    listener = messages.ListenerUp(
        workload=workload.state.cookie,
        address=packed16(parse_address(address)),
        dual_stack=dual_stack,
        port=port,
        host_address=packed16(at.address),
        host_port=at.port,
        cookie=1000 + len(workload.listeners),
    )
    workload.listeners[listener.cookie] = listener
    return listener
