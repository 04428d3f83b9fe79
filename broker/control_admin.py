"""What control answers to the tools; implements admin.server.AdminProvider.

Reads control's parts and changes nothing itself: whatever is asked for is control's to do.
"""

from __future__ import annotations

import os
import time
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from slim.broker import reporting
from slim.broker.admin import messages as admin
from slim.broker.explaining import Explaining

if TYPE_CHECKING:
    from collections.abc import Callable

    from slim.broker.config import BrokerConfig
    from slim.broker.control_links import KeeperClient, TrapsServer
    from slim.broker.observing import Observing
    from slim.broker.paths import HostPaths
    from slim.broker.peers.channel import PeerLinks
    from slim.broker.registry import Registry
    from slim.broker.resolver import Resolver
    from slim.broker.revocation import Revocation
    from slim.broker.survey import Survey
    from slim.broker.watching import Watching


class Steering(Protocol):
    """What only control itself can do."""

    @property
    def config(self) -> BrokerConfig: ...
    def stop(self, *, release: bool = False) -> None: ...
    async def reload(self) -> admin.Reloaded: ...


@dataclass(slots=True, kw_only=True)
class ControlAdmin:
    """Borrows everything."""

    control: Steering
    host: str
    registry: Registry
    resolver: Resolver
    survey: Survey
    watching: Watching
    revocation: Revocation
    keeper: KeeperClient
    traps: TrapsServer
    paths: HostPaths
    links: PeerLinks | None
    observing: Observing
    counters: Callable[[], dict[str, int]]
    started: float
    """time.monotonic()"""

    async def status(self) -> admin.Status:
        config = self.control.config
        counters = self.counters()
        for endpoint, error in self.paths.failures().items():
            counters[f"path_failed {endpoint} {error}"] = 1
        workloads = [*self.registry]
        return admin.Status(
            version=reporting.own_version(),
            host=self.host,
            guard=config.guard,
            config=str(config.path),
            run_dir=str(config.run_dir),
            uptime_s=time.monotonic() - self.started,
            host_addresses=[str(address) for address in config.host.addresses],
            host_ports=str(config.host.ports),
            overlays=[
                f"{overlay.name}: {', '.join(str(network) for network in overlay.networks)}"
                for overlay in config.overlays
            ],
            processes=[
                admin.ProcessStatus("control", os.getpid()),
                admin.ProcessStatus("traps", self.traps.pid),
                admin.ProcessStatus("keeper", self.keeper.peer_pid),
            ],
            peers=[
                admin.PeerStatus(
                    peer.host,
                    peer.endpoint,
                    peer.state,
                    peer.error,
                    peer.retry_in_s,
                    peer.rtt_ms,
                )
                for peer in (self.links.status() if self.links is not None else [])
            ],
            workloads=len(workloads),
            containers=sum(len(workload.containers) for workload in workloads),
            listeners=sum(len(workload.listeners) for workload in workloads),
            connections=await self.survey.count_open(),
            counters=counters,
        )

    async def containers(self) -> admin.Containers:
        return await self.survey.list_containers()

    async def connections(self) -> admin.Connections:
        return await self.survey.list_connections()

    async def changes(self, after: int) -> admin.Changes:
        return await self.watching.changes(after)

    def plugins(self) -> admin.Plugins:
        plugins = self.registry.plugins
        costs: defaultdict[str, list[admin.HookCost]] = defaultdict(list)
        for (name, hook), cost in sorted(plugins.costs.items()):
            costs[name].append(
                admin.HookCost(hook, cost.calls, cost.errors, cost.seconds, cost.slowest_s)
            )
        return admin.Plugins(
            [
                admin.Plugin(name, version, hooks, costs[name])
                for name, version, hooks in plugins.describe()
            ]
        )

    async def events(self, asked: admin.GetEvents) -> admin.Events:
        if asked.after <= self.observing.last:
            await self.observing.wait(asked.after, asked.wait_s)
        return admin.Events(*self.observing.after(asked.after, asked.limit))

    async def reload(self) -> admin.Reloaded:
        return await self.control.reload()

    async def cut(self, cookies: list[int]) -> admin.CutDone:
        return admin.CutDone(sorted(await self.revocation.cut_chosen(frozenset(cookies))))

    async def explain(self, asked: admin.Explain) -> admin.Explanation:
        return await Explaining(self.registry, self.resolver, self.host).explain(asked)

    def stop_from_admin(self, release: bool) -> admin.Stopping:
        self.control.stop(release=release)
        return admin.Stopping(os.getpid())
