"""What traps says: questions about flows, listeners that come and go, containers that are gone."""

from __future__ import annotations

import errno
from collections import Counter
from typing import TYPE_CHECKING

from slim.broker import events
from slim.broker.endpoints import Endpoint, from_packed16
from slim.broker.local import messages
from slim.broker.registry import host_endpoint

if TYPE_CHECKING:
    from collections.abc import Callable

    from slim.broker.containers import Containers
    from slim.broker.control_links import TrapsServer
    from slim.broker.endpoints import Address
    from slim.broker.inbound import Inbound
    from slim.broker.paths import HostPaths
    from slim.broker.registry import Registry, Workload
    from slim.broker.resolver import Resolver
    from slim.broker.revocation import Revocation
    from slim.broker.tasks import Tasks


class TrapsNews:
    """Takes every message of traps, at once; what needs time goes on as a task."""

    def __init__(
        self,
        *,
        registry: Registry,
        containers: Containers,
        inbound: Inbound,
        resolver: Resolver,
        revocation: Revocation,
        paths: HostPaths,
        traps: TrapsServer,
        tasks: Tasks,
        invalidate: Callable[[dict[str, set[Address]], int], None],
    ) -> None:
        """`invalidate` tells hosts that what they know of those addresses and port is outdated."""
        self._registry = registry
        self._containers = containers
        self._inbound = inbound
        self._resolver = resolver
        self._revocation = revocation
        self._paths = paths
        self._traps = traps
        self._tasks = tasks
        self._invalidate = invalidate
        self._listening: set[int] = set()
        """Listeners (cookies) that the last traps told of: its successor tells of them again."""
        self.counters: Counter[str] = Counter()
        self.traps_counters: dict[str, int] = {}
        """Its own, as it told them last."""

    def take(self, message: messages.ToControl) -> None:
        match message:
            case messages.LookUp():
                self._tasks.spawn(self._look_up(message))
            case messages.ListenerUp():
                self._on_listener(message.workload, message.port, message)
            case messages.ListenerGone():
                workload = self._registry.workloads.get(message.workload)
                listener = workload.listeners.pop(message.cookie, None) if workload else None
                if workload is not None and listener is not None:
                    self._publish_listener(workload, listener, events.ListenerGone)
                    self._on_listener(message.workload, listener.port, None)
            case messages.ContainerGone():
                self._tasks.spawn(self._containers.gone(message.container))
            case messages.PathFailed():
                endpoint = Endpoint(from_packed16(message.host_address), message.host_port)
                code = errno.errorcode.get(message.errno, str(message.errno))
                self._paths.failed(endpoint, code)
            case messages.TrapsCounters():
                self.traps_counters = message.counters
            case messages.TrapsHello():
                self._on_hello(message)
            case messages.Done():
                return

    def _on_hello(self, hello: messages.TrapsHello) -> None:
        self._listening = {cookie for workload in self._registry for cookie in workload.listeners}
        for workload in self._registry:
            # traps announces the listeners that live.
            workload.listeners.clear()
        self._tasks.spawn(self._containers.compare(hello.containers, hello.idle))
        self.counters["traps_connected"] += 1
        self._registry.publish(events.TrapsConnected(pid=hello.pid))
        # It may have missed what its predecessor was told last.
        self._revocation.judge_again()

    async def _look_up(self, asked: messages.LookUp) -> None:
        self.counters["lookups"] += 1
        self._traps.send(await self._resolver.look_up(asked))

    def _on_listener(self, cookie: int, port: int, listener: messages.ListenerUp | None) -> None:
        """A listener came or went: whoever was told otherwise must hear it."""
        workload = self._registry.workloads.get(cookie)
        if workload is not None and listener is not None:
            is_new = listener.cookie not in {*workload.listeners, *self._listening}
            workload.listeners[listener.cookie] = listener
            if is_new:
                self._publish_listener(workload, listener, events.ListenerUp)
        self._invalidate(self._inbound.take_askers(cookie, port), port)

    def _publish_listener(
        self,
        workload: Workload,
        listener: messages.ListenerUp,
        kind: type[events.ListenerUp | events.ListenerGone],
    ) -> None:
        self._registry.publish(
            kind(
                workload=workload.state.name,
                overlay_local=str(Endpoint(from_packed16(listener.address), listener.port)),
                host_local=str(host_endpoint(listener)),
                cookie=listener.cookie,
            )
        )
