"""Workloads, containers and listeners as control knows them: identity, addresses, who is where.

The keeper holds the durable copy of each (WorkloadState, ContainerState); this is the index over
it. A workload lives from its first container to its last.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias

import msgspec

from slim.broker.decisions import Direction, Identity
from slim.broker.endpoints import (
    Address,
    Endpoint,
    Network,
    contains_any,
    from_packed16,
    packed16,
)
from slim.broker.errors import ControlError
from slim.broker.events import WouldDeny
from slim.broker.kernel.addresses import pick_source, read_addresses
from slim.broker.local.states import ContainerState, WorkloadState
from slim.broker.observing import ignore
from slim.broker.queues import mark_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from slim.broker.config import OverlayConfig
    from slim.broker.decisions import Verdict
    from slim.broker.events import Event
    from slim.broker.local.messages import ListenerUp
    from slim.broker.plugin_manager import Plugins

Membership: TypeAlias = Literal["required", "optional", "never"]
"""Of an overlay: a workload without is a bystander, whose calls all go on natively."""

MAX_CONTAINERS = 4096
MAX_INDEX = 1 << 20
MAX_AUDITED = 1024
MAX_ENDED = 1024

log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Workload:
    """One workload; owns the fd of its namespace."""

    state: WorkloadState
    netns_fd: int
    containers: dict[str, ContainerState] = field(default_factory=dict)
    listeners: dict[int, ListenerUp] = field(default_factory=dict)
    sources: dict[Address, Address] = field(default_factory=dict)
    """Destination -> source address that the routing table picks; asked once each."""

    @property
    def identity(self) -> Identity:
        return Identity(self.state.name, self.state.namespace, self.state.labels)

    @property
    def is_bystander(self) -> bool:
        """Whether it is on no overlay."""
        return not self.state.networks

    @property
    def addresses(self) -> list[Address]:
        return [from_packed16(packed) for packed in self.state.addresses]

    def source_for(self, destination: Address) -> Address | None:
        """The overlay address that connections to the destination come from."""
        source = self.sources.get(destination)
        if source is None:
            source = pick_source(self.netns_fd, destination)
            if source is not None and len(self.sources) < 4096:
                self.sources[destination] = source
        return source

    def listener_for(self, address: Address, port: int) -> ListenerUp | None:
        for listener in self.listeners.values():
            if listener.port != port:
                continue
            own = from_packed16(listener.address)
            if own == address or (
                own.is_unspecified and (own.version == address.version or listener.dual_stack)
            ):
                return listener
        return None


def host_endpoint(listener: ListenerUp) -> Endpoint:
    """Where host connections to the listener go."""
    return Endpoint(from_packed16(listener.host_address), listener.host_port)


@dataclass(slots=True)
class Registry:
    """All workloads of this host."""

    overlays: tuple[OverlayConfig, ...]
    plugins: Plugins
    workloads: dict[int, Workload] = field(default_factory=dict)
    audited: Counter[str] = field(default_factory=Counter)
    """How often each rule would have denied, if it were not only watched."""
    epoch: int = 0
    """Counts changes of policy, here or at a peer: a verdict of an older epoch is asked again."""
    publish: Callable[[Event], None] = ignore
    """Where control's parts tell what happens (observing.py)."""
    _ended: dict[int, str] = field(default_factory=dict)
    """Names of workloads that are gone, by cookie, oldest first."""

    def __iter__(self) -> Iterator[Workload]:
        return iter([*self.workloads.values()])

    def by_address(self, address: Address) -> Workload | None:
        packed = packed16(address)
        for workload in self.workloads.values():
            if packed in workload.state.addresses:
                return workload
        return None

    def by_container(self, container: str) -> Workload | None:
        for workload in self.workloads.values():
            if container in workload.containers:
                return workload
        return None

    def overlay_of(self, name: str) -> OverlayConfig | None:
        return next((overlay for overlay in self.overlays if overlay.name == name), None)

    def describe_namespace(
        self,
        cookie: int,
        netns_fd: int,
        *,
        name: str | None,
        namespace: str,
        labels: dict[str, str],
        overlay: str | None,
        fail_mode: str,
        prepared: str | None,
        membership: Membership = "required",
    ) -> WorkloadState:
        """What a namespace is, for its first container; ControlError when it cannot be brokered."""
        identity = Identity(name or f"netns-{cookie}", namespace, labels)
        addresses = read_addresses(netns_fd)
        if membership == "never" or (
            membership == "optional" and not self._is_on_overlay(addresses, identity)
        ):
            return self._describe_bystander(cookie, identity)
        chosen = self._choose_overlay(addresses, overlay)
        own = [address for address in addresses if contains_any(chosen.networks, address)]
        index = self._free_index()
        return WorkloadState(
            cookie=cookie,
            name=identity.workload,
            namespace=namespace,
            labels=labels,
            overlay=chosen.name,
            networks=[_pack_network(network) for network in chosen.networks],
            addresses=[packed16(address) for address in own],
            index=index,
            isolated_ingress=self.plugins.isolates(identity, Direction.INGRESS),
            isolated_egress=self._isolates_egress(identity, chosen),
            fail_mode="closed" if fail_mode == "closed" else "open",
            prepared=prepared,
            mark=self._mark(identity, index),
        )

    def _describe_bystander(self, cookie: int, identity: Identity) -> WorkloadState:
        return WorkloadState(
            cookie=cookie,
            name=identity.workload,
            namespace=identity.namespace,
            labels=dict(identity.labels),
            overlay="",
            networks=[],
            addresses=[],
            index=self._free_index(),
            isolated_ingress=False,
            isolated_egress=False,
            fail_mode="open",
            prepared=None,
        )

    def _is_on_overlay(self, addresses: list[Address], identity: Identity) -> bool:
        """False only if it need not be: what policy isolates must be where policy is kept."""
        return (
            any(
                contains_any(overlay.networks, own)
                for overlay in self.overlays
                for own in addresses
            )
            or self.plugins.isolates(identity, Direction.INGRESS)
            or self.plugins.isolates(identity, Direction.EGRESS)
        )

    def container_rates(self) -> dict[int, int]:
        """What workloads may send in all, in bytes per second, by the mark of their sockets."""
        rates = {}
        for workload in self.workloads.values():
            rate = self.plugins.shaping.container_rate(workload.identity)
            if rate is not None and workload.state.mark:
                rates[workload.state.mark] = rate
        return rates

    def _mark(self, identity: Identity, index: int) -> int:
        return mark_of(index) if self.plugins.shaping.container_rate(identity) is not None else 0

    def use_policy(self, plugins: Plugins) -> None:
        """These plugins decide from now on."""
        self.plugins = plugins
        self.epoch += 1

    def note_audit(self, verdict: Verdict, flow: str) -> None:
        """Count and log a flow that only audit let through."""
        if len(self.audited) < MAX_AUDITED or verdict.rule in self.audited:
            self.audited[verdict.rule] += 1
        self.publish(WouldDeny(flow=flow, rule=verdict.rule))

    def counters(self) -> dict[str, int]:
        return {
            "policy_epoch": self.epoch,
            **{f"would_deny {rule}": count for rule, count in self.audited.items()},
        }

    def describe_again(self, workload: Workload) -> bool:
        """Bring what depends on policy and configuration up to date; True if anything changed."""
        overlay = self.overlay_of(workload.state.overlay)
        if overlay is None:
            return False
        state = msgspec.structs.replace(
            workload.state,
            networks=[_pack_network(network) for network in overlay.networks],
            isolated_ingress=self.plugins.isolates(workload.identity, Direction.INGRESS),
            isolated_egress=self._isolates_egress(workload.identity, overlay),
            mark=self._mark(workload.identity, workload.state.index),
        )
        changed = state != workload.state
        workload.state = state
        return changed

    def relabel(
        self, workload: Workload, name: str, namespace: str, labels: dict[str, str]
    ) -> bool:
        """Give a workload that lives another identity; False if it has it already."""
        state = msgspec.structs.replace(
            workload.state, name=name, namespace=namespace, labels=labels
        )
        changed = state != workload.state
        workload.state = state
        return changed

    def _isolates_egress(self, identity: Identity, overlay: OverlayConfig) -> bool:
        return overlay.unverified == "deny" or self.plugins.isolates(identity, Direction.EGRESS)

    def check_same(
        self, known: WorkloadState, name: str | None, namespace: str, labels: dict[str, str]
    ) -> None:
        """A further container of a workload must not contradict the first: labels are identity."""
        if (name or known.name, namespace, labels or known.labels) != (
            known.name,
            known.namespace,
            known.labels,
        ):
            raise ControlError(
                f"the namespace already is workload {known.name!r} (namespace "
                f"{known.namespace!r}, labels {known.labels}), not {name!r} ({labels})",
                hint="give the same --workload, --namespace and --label, or another --netns",
            )

    def refresh_addresses(self, workload: Workload) -> bool:
        """Read the namespace's addresses again; True if they changed."""
        overlay = self.overlay_of(workload.state.overlay)
        if overlay is None:
            return False
        own = [
            packed16(address)
            for address in read_addresses(workload.netns_fd)
            if contains_any(overlay.networks, address)
        ]
        if not own or own == workload.state.addresses:
            return False
        workload.state = msgspec.structs.replace(workload.state, addresses=own)
        workload.sources.clear()
        return True

    def _choose_overlay(self, addresses: list[Address], name: str | None) -> OverlayConfig:
        for overlay in self.overlays:
            if name in (None, overlay.name) and any(
                contains_any(overlay.networks, address) for address in addresses
            ):
                return overlay
        names = ", ".join(overlay.name for overlay in self.overlays) or "none is configured"
        has = ", ".join(str(address) for address in addresses) or "none"
        raise ControlError(
            f"the namespace has no address on overlay {name}"
            if name
            else f"the namespace has no address on any overlay ({names}); it has: {has}",
            hint="attach it (slimctl overlay attach), or name the overlay's networks in the config",
        )

    def _free_index(self) -> int:
        taken = {workload.state.index for workload in self.workloads.values()}
        return next(index for index in range(MAX_INDEX) if index not in taken)

    def add(self, state: WorkloadState, netns_fd: int) -> Workload:
        """Takes the fd."""
        workload = Workload(state, netns_fd)
        self.workloads[state.cookie] = workload
        return workload

    def remove(self, workload: Workload) -> None:
        del self.workloads[workload.state.cookie]
        os.close(workload.netns_fd)
        self._ended[workload.state.cookie] = workload.state.name
        if len(self._ended) > MAX_ENDED:
            del self._ended[next(iter(self._ended))]

    def name_of(self, cookie: int) -> str:
        """Of a workload, or of one that ended lately: its last connections are told after that."""
        workload = self.workloads.get(cookie)
        return workload.state.name if workload is not None else self._ended.get(cookie, str(cookie))


def _pack_network(network: Network) -> tuple[bytes, int]:
    return packed16(network.network_address), network.prefixlen
