"""slimd's control process: configuration, plugins, channels, and the tables of who is here.

One asyncio loop. It starts the keeper if none answers, hands it everything that must outlive
slimd, and answers what traps cannot know. When it ends, established connections, traps' known
flows and every listener fd live on.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import sys
import time
from collections import Counter
from typing import TYPE_CHECKING

import msgspec

from slim.broker import reporting
from slim.broker.admin import messages as admin
from slim.broker.admin.server import AdminServer
from slim.broker.admission_keys import AdmissionKeys
from slim.broker.containers import Containers
from slim.broker.control_links import KeeperClient, TrapsServer
from slim.broker.discovery_lending import Lending
from slim.broker.endpoints import Endpoint, from_packed16, packed16
from slim.broker.errors import ConfigError, ControlError
from slim.broker.inbound import Inbound
from slim.broker.keeper_start import connect_keeper, make_settings
from slim.broker.kernel.namespaces import own_netns_cookie
from slim.broker.kernel.seccomp_filter import build_filter
from slim.broker.local import messages
from slim.broker.paths import HostPaths
from slim.broker.peering import Peering
from slim.broker.peers import messages as peer_messages
from slim.broker.peers.channel import PeerLinks
from slim.broker.peers.pki import load_host_credentials
from slim.broker.plugin_manager import Plugins
from slim.broker.plugin_settings import PluginSettings
from slim.broker.registry import Registry
from slim.broker.resolver import Resolver
from slim.broker.run_directory import claim
from slim.broker.run_server import RunServer
from slim.broker.survey import Survey

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from slim.broker.config import BrokerConfig
    from slim.broker.discovery import DiscoveryBackend
    from slim.broker.endpoints import Address

log = logging.getLogger(__name__)

ENCRYPTION = "aesgcm"
TRAPS_START_LIMIT_S = 10.0
_encode = msgspec.msgpack.encode


class Control:
    """Everything control owns; `run` returns when slimd is to end."""

    def __init__(self, config: BrokerConfig, *, trace_hooks: bool = False) -> None:
        self._config = config
        self._started = time.monotonic()
        self._stopping = asyncio.Event()
        self._release = False
        self._keeper_is_gone = False
        self.counters: Counter[str] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()
        self._plugins = Plugins(block=config.plugins.block, load=config.plugins.load)
        self._plugins.configure(
            PluginSettings(
                host=config.host.name,
                source=str(config.path),
                tables=dict(config.plugin_settings),
            )
        )
        if trace_hooks:
            self._plugins.trace()
        self._encryption = self._plugins.encryption_backends()[ENCRYPTION]
        self._registry = Registry(config.overlays, self._plugins)
        self._paths = HostPaths()
        self._credentials = (
            load_host_credentials(
                config.peers.certificate, config.peers.key, config.peers.authority
            )
            if config.peers
            else None
        )
        self._host = self._credentials.identity.host if self._credentials else config.host.name
        self._backends: list[DiscoveryBackend] = []
        # Made in start(), which undoes itself in stop().
        self._keeper: KeeperClient
        self._traps: TrapsServer
        self._keys: AdmissionKeys
        self._inbound: Inbound
        self._peering: Peering
        self._containers: Containers
        self._survey: Survey
        self._links: PeerLinks | None = None
        self._resolver: Resolver
        self._run_server: RunServer
        self._admin: AdminServer

    # --- life ---------------------------------------------------------------------------------

    async def run(self) -> None:
        """Start, serve until `stop`, and leave everything to the keeper."""
        async with contextlib.AsyncExitStack() as undo:
            await self._start(undo)
            log.info("slimd is ready on host %s (%s)", self._host, self._config.run_dir)
            await self._stopping.wait()
            if self._keeper_is_gone:
                raise ControlError(
                    "the keeper is gone: containers that run now are no longer supervised",
                    hint="start slimd and those containers again; was it killed for its memory?",
                )
            log.info("slimd stops; established connections stay")

    def stop(self, *, release: bool = False) -> None:
        self._release = self._release or release
        self._stopping.set()

    async def _start(self, undo: contextlib.AsyncExitStack) -> None:
        config, run_dir = self._config, self._config.run_dir
        undo.callback(os.close, await claim(run_dir))
        if config.guard != "portable":
            raise ConfigError(f"{config.path}: guard: {config.guard!r} is not in this version")
        program = build_filter(config.guard)
        self._keeper = await connect_keeper(run_dir, self._process_options(), self._on_keeper_end)
        undo.push_async_callback(self._end_processes)
        held, _ = await self._keeper.fetch("")
        self._traps = TrapsServer(str(run_dir / "traps.sock"), self._on_traps, self._on_traps_hello)
        undo.callback(self._traps.close)
        lifetime = config.limits.flow_lifetime_s
        self._keys = AdmissionKeys(self._traps, lifetime_s=lifetime)
        undo.callback(self._keys.close)
        self._inbound = Inbound(self._registry, self._plugins, self._traps, lifetime_s=lifetime)
        self._peering = Peering(
            self._host, config.host.addresses, self._traps, self._keys, self._inbound
        )
        if self._credentials is not None and config.peers is not None:
            self._links = PeerLinks(self._credentials, self._peering.hello, self._peering)
            undo.push_async_callback(self._links.close)
        self._resolver = Resolver(
            self._registry,
            self._plugins,
            self._inbound,
            self._paths,
            self._links,
            host=self._host,
            deny_errno=config.policy.errno,
        )
        if self._links is not None:
            self._peering.use(self._links, self._resolver)
        self._containers = Containers(
            self._registry, self._keeper, self._traps, self._inbound, self._invalidate
        )
        await self._containers.restore(held)
        await self._start_traps()
        self._start_discovery()
        undo.callback(self._close_backends)
        self._keys.start(
            self._host,
            [packed16(address) for address in config.host.addresses],
            self._peering.take_own_key,
        )
        await self._keys.ensure(self._host)
        if self._links is not None and config.peers is not None:
            await self._listen_for_peers(config.peers.listen)
        host_netns = own_netns_cookie()
        self._run_server = RunServer(
            str(run_dir / "run.sock"), program, host_netns, config.slim_run, self._containers
        )
        undo.callback(self._run_server.close)
        self._survey = Survey(self._registry, self._keeper, self._traps)
        undo.callback(self._survey.close)
        self._admin = AdminServer(self)
        await self._admin.start(run_dir / "admin.sock")
        undo.push_async_callback(self._admin.close)
        sweep = asyncio.create_task(self._survey.sweep())
        undo.callback(sweep.cancel)

    async def _listen_for_peers(self, endpoint: Endpoint) -> None:
        assert self._links is not None
        try:
            await self._links.start(endpoint)
        except OSError as error:
            raise ControlError(
                f"cannot listen for peers at {endpoint}: {os.strerror(error.errno or 0)}",
                hint="is another slimd running? see [peers] listen",
            ) from None

    async def _end_processes(self) -> None:
        with contextlib.suppress(ControlError):
            if self._release:
                await self._keeper.release()
            else:
                await self._keeper.stop_traps()
        self._keeper.close()

    # --- keeper and traps ---------------------------------------------------------------------

    def _process_options(self) -> list[str]:
        log_config = self._config.log
        return [
            f"--run-dir={self._config.run_dir}",
            f"--log-level={log_config.level}",
            f"--log-format={log_config.format}",
        ]

    def _on_keeper_end(self) -> None:
        self._keeper_is_gone = True
        self.stop()

    async def _start_traps(self) -> None:
        config = self._config
        settings = make_settings(config, self._encryption.module)
        await self._keeper.store("settings", _encode(settings))
        argv = [sys.executable, "-m", "slim.broker.traps", *self._process_options()]
        await self._keeper.start_traps(argv, config.limits.gap_limit_s)
        try:
            async with asyncio.timeout(TRAPS_START_LIMIT_S):
                await self._traps.connected.wait()
        except TimeoutError:
            raise ControlError(
                "the trap process does not start", hint="its messages are in the log above"
            ) from None
        self._traps.send(messages.Settings(settings))

    def _on_traps_hello(self, hello: messages.TrapsHello) -> None:
        for workload in self._registry:
            # traps announces the listeners that live.
            workload.listeners.clear()
        self._spawn(self._containers.compare(hello.containers, hello.idle))
        self.counters["traps_connected"] += 1

    def _on_traps(self, message: messages.ToControl) -> None:
        match message:
            case messages.LookUp():
                self._spawn(self._look_up(message))
            case messages.ListenerUp():
                self._on_listener(message.workload, message.port, message)
            case messages.ListenerGone():
                workload = self._registry.workloads.get(message.workload)
                listener = workload.listeners.pop(message.cookie, None) if workload else None
                if listener is not None:
                    self._on_listener(message.workload, listener.port, None)
            case messages.ContainerGone():
                self._spawn(self._containers.gone(message.container))
            case messages.PathFailed():
                endpoint = Endpoint(from_packed16(message.host_address), message.host_port)
                code = errno.errorcode.get(message.errno, str(message.errno))
                self._paths.failed(endpoint, code)
            case messages.TrapsHello() | messages.Done():
                return

    async def _look_up(self, asked: messages.LookUp) -> None:
        self.counters["lookups"] += 1
        self._traps.send(await self._resolver.look_up(asked))

    def _on_listener(self, cookie: int, port: int, listener: messages.ListenerUp | None) -> None:
        """A listener came or went: whoever was told otherwise must hear it."""
        workload = self._registry.workloads.get(cookie)
        if workload is not None and listener is not None:
            workload.listeners[listener.cookie] = listener
        self._invalidate(self._inbound.take_askers(cookie, port), port)

    def _invalidate(self, askers: dict[str, set[Address]], port: int) -> None:
        for peer, addresses in askers.items():
            for address in addresses:
                packed = packed16(address)
                if peer == self._host:
                    self._traps.send(messages.DropFlows(packed, port))
                elif self._links is not None:
                    self._links.send(peer, peer_messages.Invalidate(packed, port))

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._on_task_done)

    def _on_task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self.counters["internal_errors"] += 1
            log.error("a task failed", exc_info=task.exception())

    # --- discovery ----------------------------------------------------------------------------

    def _start_discovery(self) -> None:
        peers = self._config.peers
        control = None
        if peers is not None:
            address = peers.listen.address
            if address.is_unspecified:
                address = self._config.host.addresses[0]
            control = Endpoint(address, peers.listen.port)
        lending = Lending(
            self._host,
            control,
            self._config.discovery.rendezvous_port,
            self._registry,
            self._credentials,
        )
        found = self._plugins.discovery_backends(lending)
        for name in self._config.discovery.order:
            if name not in found:
                raise ConfigError(
                    f"{self._config.path}: [discovery] order: there is no backend {name!r}",
                    hint=f"there are: {', '.join(sorted(found))}",
                )
            self._backends.append(found.pop(name))
        for unused in found.values():
            unused.close()
        self._resolver.backends = self._backends
        self._containers.announce_to(self._backends)

    def _close_backends(self) -> None:
        for backend in self._backends:
            backend.close()

    # --- admin (admin.server.AdminProvider) ---------------------------------------------------

    async def status(self) -> admin.Status:
        config = self._config
        counters = {
            **self.counters,
            **self._containers.counters,
            **self._resolver.counters,
            **self._inbound.counters,
        }
        peers = self._links.status() if self._links is not None else []
        if self._links is not None:
            counters.update({**self._links.counters, **self._peering.counters})
        for endpoint, error in self._paths.failures().items():
            counters[f"path_failed {endpoint} {error}"] = 1
        workloads = [*self._registry]
        snapshot = await self._survey.snapshot()
        connections = 0
        if snapshot is not None:
            connections = sum(record.cookie in snapshot.sockets for record in snapshot.records)
        return admin.Status(
            version=reporting.own_version(),
            host=self._host,
            guard=config.guard,
            config=str(config.path),
            run_dir=str(config.run_dir),
            uptime_s=time.monotonic() - self._started,
            host_addresses=[str(address) for address in config.host.addresses],
            host_ports=str(config.host.ports),
            overlays=[
                f"{overlay.name}: {', '.join(str(network) for network in overlay.networks)}"
                for overlay in config.overlays
            ],
            processes=[
                admin.ProcessStatus("control", os.getpid()),
                admin.ProcessStatus("traps", self._traps.pid),
                admin.ProcessStatus("keeper", self._keeper.peer_pid),
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
                for peer in peers
            ],
            workloads=len(workloads),
            containers=sum(len(workload.containers) for workload in workloads),
            listeners=sum(len(workload.listeners) for workload in workloads),
            connections=connections,
            counters=counters,
        )

    async def containers(self) -> admin.Containers:
        return await self._survey.list_containers()

    async def connections(self) -> admin.Connections:
        return await self._survey.list_connections()

    def plugins(self) -> admin.Plugins:
        return admin.Plugins(
            [
                admin.Plugin(name, version, list(hooks))
                for name, version, hooks in self._plugins.describe()
            ]
        )

    def stop_from_admin(self, release: bool) -> admin.Stopping:
        self.stop(release=release)
        return admin.Stopping(os.getpid())
