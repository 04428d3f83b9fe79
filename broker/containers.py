"""Containers come and go: claims, the workloads behind them, what is kept of both.

Claims come from slim-run (run_server.py) and from OCI runtimes (oci/agent.py). Order matters: the
keeper has a listener fd before traps supervises it, and slim-run hears Ack last, so that no command
runs under a filter without a supervisor.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections import Counter
from typing import TYPE_CHECKING

import msgspec

from slim.broker import events
from slim.broker.errors import ControlError
from slim.broker.local import messages, states
from slim.broker.registry import MAX_CONTAINERS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from slim.broker.control_links import KeeperClient, TrapsServer
    from slim.broker.decisions import Identity
    from slim.broker.discovery import DiscoveryBackend
    from slim.broker.endpoints import Address
    from slim.broker.inbound import Inbound
    from slim.broker.queues import Queues
    from slim.broker.registry import Membership, Registry, Workload

log = logging.getLogger(__name__)

_encode = msgspec.msgpack.encode

SHOWN_ID = 12
"""Characters of a runtime's id in the name of a workload that has no other, as docker ps has."""


class Containers:
    """Borrows everything it is made with."""

    def __init__(
        self,
        registry: Registry,
        keeper: KeeperClient,
        traps: TrapsServer,
        inbound: Inbound,
        queues: Queues,
        on_invalid: Callable[[dict[str, set[Address]], int], None],
    ) -> None:
        self._registry = registry
        self._keeper = keeper
        self._traps = traps
        self._inbound = inbound
        self._queues = queues
        self._on_invalid = on_invalid
        self._backends: list[DiscoveryBackend] = []
        self.before_forgetting: Callable[[int], Awaitable[None]] | None = None
        """Told which workload (cookie) ends, while traps still has its connections on record."""
        self._attaching: set[str] = set()
        """Containers on their way to traps, which does not know them yet."""
        self.counters: Counter[str] = Counter()

    def announce_to(self, backends: list[DiscoveryBackend]) -> None:
        """Tell the backends of every workload, those that are here and those to come."""
        self._backends = backends
        for workload in self._registry:
            for backend in backends if not workload.is_bystander else ():
                backend.workload_added(workload.state.cookie, tuple(workload.addresses))

    async def restore(self, held: list[tuple[str, bytes, list[int]]]) -> None:
        """Take over what a predecessor left with the keeper."""
        containers: list[states.ContainerState] = []
        for name, meta, fds in held:
            if name.startswith("workload/") and fds:
                state = msgspec.msgpack.decode(meta, type=states.WorkloadState)
                self._registry.add(state, fds.pop())
            elif name.startswith("container/"):
                containers.append(msgspec.msgpack.decode(meta, type=states.ContainerState))
            for fd in fds:
                os.close(fd)
        for container in containers:
            workload = self._registry.workloads.get(container.workload)
            if workload is not None:
                workload.containers[container.container] = container
        for workload in self._registry:
            if not workload.containers:
                await self._forget(workload)
        if containers:
            log.info("took over %d containers", len(containers))

    async def prepare_namespace(self, overlay: str, address: str | None) -> tuple[str, int]:
        from slim.broker.overlay.namespaces import prepare

        return await asyncio.to_thread(prepare, overlay, address)

    def may_limit(self, workload: Identity | None) -> bool:
        """Whether policy could limit a connection of that workload; None: of any."""
        return self._registry.plugins.may_shape(workload)

    async def discard_namespace(self, name: str) -> None:
        from slim.broker.overlay.namespaces import discard

        await asyncio.to_thread(discard, name)

    async def register(
        self,
        claim: messages.Register,
        container: states.ContainerState,
        fds: list[int],
        membership: Membership = "required",
    ) -> None:
        # Between two lives of traps nobody is refused.
        await self._traps.wait_until_connected()
        netns_fd, listener = fds
        cookie = container.workload
        if sum(len(workload.containers) for workload in self._registry) >= MAX_CONTAINERS:
            raise ControlError(
                f"this host has {MAX_CONTAINERS} containers already",
                hint="that is as many as one slimd supervises: see slimctl ps",
            )
        workload = self._registry.workloads.get(cookie)
        is_new = workload is None
        if workload is None or workload.is_bystander:
            state = self._registry.describe_namespace(
                cookie,
                netns_fd,
                name=claim.workload or container.runtime_id[:SHOWN_ID] or None,
                namespace=claim.namespace,
                labels=claim.labels,
                overlay=claim.overlay,
                fail_mode=claim.fail_mode,
                prepared=claim.prepared,
                membership=membership,
            )
            if workload is None:
                workload = self._registry.add(state, os.dup(netns_fd))
            elif state.networks:
                # It has come to an overlay since its first container.
                workload.state = msgspec.structs.replace(state, index=workload.state.index)
                is_new = True
        else:
            self._registry.check_same(workload.state, claim.workload, claim.namespace, claim.labels)
            # Addresses may have come or gone since the first container.
            is_new = self._registry.refresh_addresses(workload)
        # Reserved now: another conversation must not remove the workload while we wait.
        workload.containers[container.container] = container
        self._attaching.add(container.container)
        name = f"container/{container.container}"
        try:
            if is_new:
                # The class before the first packet that belongs into it.
                await self._queues.apply(self._registry.container_rates())
                await self._keeper.store(
                    f"workload/{cookie}", _encode(workload.state), (workload.netns_fd,)
                )
            known = workload.state
            await self._traps.request(
                lambda token: messages.AttachWorkload(token, known), (workload.netns_fd,)
            )
            await self._keeper.store(name, _encode(container), (listener,))
            await self._traps.request(
                lambda token: messages.AttachContainer(token, container), (listener,)
            )
        except (ControlError, asyncio.CancelledError):
            # Cancelled: the caller's time was up. Its filter has no supervisor; nothing may stay.
            with contextlib.suppress(ControlError):
                await self._keeper.drop(name)
            await self.gone(container.container)
            raise
        finally:
            self._attaching.discard(container.container)
        if is_new and not workload.is_bystander:
            for backend in self._backends:
                backend.workload_added(cookie, tuple(workload.addresses))
        self.counters["containers_started"] += 1
        self._registry.publish(
            events.ContainerStarted(
                workload=known.name,
                container=container.container,
                pid=container.pid,
                is_bystander=workload.is_bystander,
            )
        )

    def find_runtime(self, runtime_id: str) -> list[Workload]:
        """The workloads with a container that an OCI runtime calls so."""
        return [
            workload
            for workload in self._registry
            if any(each.runtime_id == runtime_id for each in workload.containers.values())
        ]

    async def compare(self, supervised: list[str], idle: list[int]) -> None:
        """traps connected and supervises these; its `idle` workloads have no container.

        What came or went while the two were apart is made up for.
        """
        for cookie in idle:
            if cookie not in self._registry.workloads:
                self._traps.send(messages.DetachWorkload(cookie))
        for workload in self._registry:
            for name in workload.containers.keys() - {*supervised} - self._attaching:
                with contextlib.suppress(ControlError):
                    await self._attach_again(workload, name)

    async def _attach_again(self, workload: Workload, name: str) -> None:
        """Have a container supervised that the keeper still holds; the others are gone."""
        held, _ = await self._keeper.fetch(f"container/{name}")
        listeners = [fd for _, _, fds in held for fd in fds]
        try:
            container = workload.containers.get(name)
            if container is None:
                return
            if not listeners:
                await self.gone(name)
                return
            # If its processes are gone, traps will notice at once.
            log.warning("container %s was not supervised: it is now", name)
            self._traps.send(messages.AttachWorkload(0, workload.state), (workload.netns_fd,))
            self._traps.send(messages.AttachContainer(0, container), (listeners[0],))
        finally:
            for fd in listeners:
                os.close(fd)

    async def gone(self, name: str) -> None:
        workload = self._registry.by_container(name)
        if workload is None:
            return
        del workload.containers[name]
        self._registry.publish(events.ContainerEnded(workload=workload.state.name, container=name))
        if not workload.containers:
            await self._forget(workload)

    async def _forget(self, workload: Workload) -> None:
        cookie = workload.state.cookie
        if self.before_forgetting is not None:
            await self.before_forgetting(cookie)
            if workload.containers or self._registry.workloads.get(cookie) is not workload:
                # Another container came meanwhile, and perhaps went.
                return
        for backend in self._backends if not workload.is_bystander else ():
            backend.workload_removed(cookie)
        self._on_invalid(self._inbound.take_all_askers(cookie), 0)
        self._inbound.forget_workload(cookie)
        self._traps.send(messages.DetachWorkload(cookie))
        self._registry.remove(workload)
        with contextlib.suppress(ControlError):
            await self._keeper.drop(f"workload/{cookie}")
        if workload.state.prepared is not None:
            await self.discard_namespace(workload.state.prepared)
