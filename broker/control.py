"""slimd's control process: configuration, plugins, channels, and the tables of who is here.

One asyncio loop. It starts the keeper if none answers, hands it everything that must outlive
slimd, and answers what traps cannot know. When it ends, established connections, traps' known
flows and every listener fd live on.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
import time
from collections import Counter
from typing import TYPE_CHECKING

import msgspec

from slim.broker import systemd
from slim.broker.admin import messages as admin
from slim.broker.admin.server import AdminServer
from slim.broker.admission_keys import AdmissionKeys
from slim.broker.connection_news import ConnectionNews
from slim.broker.containers import Containers
from slim.broker.control_admin import ControlAdmin
from slim.broker.control_links import KeeperClient, TrapsServer
from slim.broker.discovery_choice import Discovery
from slim.broker.endpoints import packed16
from slim.broker.errors import ControlError
from slim.broker.events import ConfigRefused, PathFailed
from slim.broker.guard import requirements
from slim.broker.inbound import Inbound
from slim.broker.keeper_start import connect_keeper, make_settings
from slim.broker.kernel.namespaces import own_netns_cookie
from slim.broker.kernel.seccomp_filter import build_filter
from slim.broker.local import messages, states
from slim.broker.observing import Observing
from slim.broker.oci import agent as oci_agent
from slim.broker.oci.listener import open_listener
from slim.broker.paths import HostPaths
from slim.broker.peering import Peering
from slim.broker.peers import messages as peer_messages
from slim.broker.peers.channel import PeerLinks
from slim.broker.queues import Queues
from slim.broker.registry import Registry
from slim.broker.reload import (
    ENCRYPTION,
    SETTLE_LIMIT_S,
    Prepared,
    Reloading,
    load_credentials,
    make_plugins,
)
from slim.broker.resolver import Resolver
from slim.broker.revocation import NoNews, Revocation
from slim.broker.run_directory import claim
from slim.broker.run_server import Programs, RunServer
from slim.broker.sources import open_sources
from slim.broker.survey import Survey
from slim.broker.tasks import Tasks
from slim.broker.traps_news import TrapsNews
from slim.broker.watching import Watching

if TYPE_CHECKING:
    from slim.broker.config import BrokerConfig
    from slim.broker.endpoints import Address, Endpoint
    from slim.broker.sources import Sources

log = logging.getLogger(__name__)

TRAPS_START_LIMIT_S = 10.0
STOP_LIMIT_S = 1.0
"""A keeper that hangs does not keep slimd from ending."""
_encode = msgspec.msgpack.encode


class Control:
    """Everything control owns; `run` returns when slimd is to end."""

    def __init__(self, config: BrokerConfig, *, trace_hooks: bool = False) -> None:
        self._config = config
        self._started = time.monotonic()
        self._stopping = asyncio.Event()
        self._is_ready = False
        self._release = False
        self._keeper_is_gone = False
        self.counters: Counter[str] = Counter()
        self._tasks = Tasks(self._on_task_failed)
        plugins = make_plugins(config)
        if trace_hooks:
            plugins.trace()
        self._trace_hooks = trace_hooks
        self._encryption = plugins.encryption_backends()[ENCRYPTION]
        self._observing = Observing()
        self._observing.use(plugins)
        self._registry = Registry(config.overlays, plugins, publish=self._observing.publish)
        self._paths = HostPaths()
        self._paths.on_failed = lambda endpoint, error: self._observing.publish(
            PathFailed(host_peer=str(endpoint), reason=error)
        )
        self._credentials = load_credentials(config)
        self._host = self._credentials.identity.host if self._credentials else config.host.name
        self._reload_lock = asyncio.Lock()
        # Made in start(), which undoes itself in stop().
        self._keeper: KeeperClient
        self._traps: TrapsServer
        self._keys: AdmissionKeys
        self._sources: Sources
        self._inbound: Inbound
        self._peering: Peering
        self._containers: Containers
        self._news: TrapsNews
        self._survey: Survey
        self._connection_news: ConnectionNews
        self._revocation: Revocation
        self._reloading: Reloading
        self._links: PeerLinks | None = None
        self._resolver: Resolver
        self._run_server: RunServer
        self._oci_agent: oci_agent.OciAgent
        self._admin: AdminServer

    # --- life ---------------------------------------------------------------------------------

    async def run(self) -> None:
        """Start, serve until `stop`, and leave everything to the keeper."""
        async with contextlib.AsyncExitStack() as undo:
            await self._start(undo)
            log.info("slimd is ready on host %s (%s)", self._host, self._config.run_dir)
            systemd.notify(systemd.READY)
            await self._stopping.wait()
            systemd.notify(systemd.STOPPING)
            if self._keeper_is_gone:
                raise ControlError(
                    "the keeper is gone: containers that run now are no longer supervised",
                    hint="start slimd and those containers again; was it killed for its memory?",
                )
            log.info("slimd stops; established connections stay")

    @property
    def config(self) -> BrokerConfig:
        """In force."""
        return self._config

    async def reload(self) -> admin.Reloaded:
        """Read the configuration again (reload.py); mistakes are logged and given back."""
        if not self._is_ready:
            raise ControlError("slimd is not ready yet", hint="try again in a moment")
        async with self._reload_lock:
            done = await self._reloading.run(self._config)
            if not isinstance(done, Prepared):
                self.counters["reloads_refused"] += 1
                self._observing.publish(ConfigRefused(mistakes=len(done), reason=done[0].message))
                return admin.Reloaded(
                    [admin.Mistake(mistake.message, mistake.hint) for mistake in done], []
                )
            self.counters["reloads"] += 1
            self._config = done.config
            if self._trace_hooks:
                done.plugins.trace()
            self._traps.send(messages.Settings(await self._settle_traps()))
            await self._revocation.settled(SETTLE_LIMIT_S)
            return admin.Reloaded([], done.needs_restart)

    def reload_soon(self) -> None:
        """SIGHUP; what comes of it is in the log."""
        self._tasks.spawn(self._reload_and_log())

    async def _reload_and_log(self) -> None:
        try:
            await self.reload()
        except ControlError as error:
            log.error("reload: %s (%s)", error.message, error.hint)

    def stop(self, *, release: bool = False) -> None:
        self._release = self._release or release
        self._stopping.set()

    async def _start(self, undo: contextlib.AsyncExitStack) -> None:
        config, run_dir = self._config, self._config.run_dir
        undo.callback(os.close, await claim(run_dir))
        undo.callback(self._finish_observing)
        undo.callback(self._tasks.spawn(self._observing.run()).cancel)
        if config.guard == "kernel":
            requirements.require()
        programs = Programs(build_filter(config.guard), build_filter(config.guard, limited=True))
        self._keeper = await connect_keeper(run_dir, self._process_options(), self._on_keeper_end)
        undo.push_async_callback(self._end_processes)
        held, processes = await self._keeper.fetch("")
        self._sources = await open_sources(self._keeper)
        undo.callback(self._sources.close)
        # A traps that runs already may speak from here on: no await until all it needs is made.
        self._traps = TrapsServer(str(run_dir / "traps.sock"), self._take_news)
        undo.callback(self._traps.close)
        lifetime = config.limits.flow_lifetime_s
        self._keys = AdmissionKeys(self._traps, lifetime_s=lifetime)
        undo.callback(self._keys.close)
        self._inbound = Inbound(self._registry, self._sources, self._traps, lifetime_s=lifetime)
        self._peering = Peering(
            self._host,
            config.host.addresses,
            self._traps,
            self._keys,
            self._inbound,
            self._registry,
            self._sources,
        )
        if self._credentials is not None and config.peers is not None:
            self._links = PeerLinks(self._credentials, self._peering.hello, self._peering)
            undo.push_async_callback(self._links.close)
        self._resolver = Resolver(
            self._registry,
            self._inbound,
            self._paths,
            self._links,
            host=self._host,
            deny_errno=config.policy.errno,
        )
        queues = Queues(config.host.addresses, self._keeper)
        queues.take_over(held)
        self._survey = Survey(self._registry, self._keeper, self._traps)
        undo.callback(self._survey.close)
        self._connection_news = ConnectionNews(self._registry, self._keeper, self._observing)
        undo.callback(self._connection_news.close)
        self._revocation = Revocation(
            self._registry,
            self._sources,
            self._survey,
            self._keeper,
            self._traps,
            self._resolver,
            NoNews() if self._links is None else self._peering,
            queues,
        )
        self._inbound.on_identity_changed = self._revocation.judge_again
        if self._links is not None:
            self._peering.use(self._links, self._resolver, self._revocation)
        self._containers = Containers(
            self._registry, self._keeper, self._traps, self._inbound, queues, self._invalidate
        )
        self._containers.before_forgetting = self._end_connections
        self._news = TrapsNews(
            registry=self._registry,
            containers=self._containers,
            inbound=self._inbound,
            resolver=self._resolver,
            revocation=self._revocation,
            paths=self._paths,
            traps=self._traps,
            tasks=self._tasks,
            invalidate=self._invalidate,
        )
        await self._containers.restore(held)
        if not processes.traps_pid:
            await self._revocation.prepare()
        undo.callback(self._tasks.spawn(self._revocation.run(), is_vital=True).cancel)
        await self._start_traps()
        discovery = Discovery(self._host, self._registry, self._resolver, self._containers)
        inputs = config, self._registry.plugins, self._credentials
        discovery.use(discovery.make(*inputs), *inputs)
        undo.callback(discovery.close)
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
            str(run_dir / "run.sock"), programs, host_netns, config.slim_run, self._containers
        )
        undo.callback(self._run_server.close)
        listener = await open_listener(run_dir / oci_agent.SOCKET, self._keeper)
        self._oci_agent = oci_agent.OciAgent(listener, host_netns, self._containers)
        undo.push_async_callback(self._oci_agent.finish)
        self._reloading = Reloading(
            host=self._host,
            registry=self._registry,
            resolver=self._resolver,
            inbound=self._inbound,
            keys=self._keys,
            discovery=discovery,
            run_server=self._run_server,
            links=self._links,
            revocation=self._revocation,
            observing=self._observing,
        )
        # What lives was allowed by a predecessor, perhaps by another policy.
        await self._revocation.settled(TRAPS_START_LIMIT_S)
        self._admin = AdminServer(
            ControlAdmin(
                control=self,
                host=self._host,
                registry=self._registry,
                resolver=self._resolver,
                survey=self._survey,
                watching=Watching(self._registry, self._survey),
                revocation=self._revocation,
                keeper=self._keeper,
                traps=self._traps,
                paths=self._paths,
                links=self._links,
                observing=self._observing,
                counters=self._all_counters,
                started=self._started,
            )
        )
        await self._admin.start(run_dir / "admin.sock")
        undo.push_async_callback(self._admin.close)
        undo.callback(self._tasks.spawn(self._connection_news.run()).cancel)
        undo.callback(self._tasks.spawn(self._survey.sweep(self._connection_news.ended)).cancel)
        undo.callback(self._tasks.spawn(systemd.show_life()).cancel)
        self._is_ready = True

    def _finish_observing(self) -> None:
        """Nothing is served any more; a plugin that hangs does not keep slimd from ending."""
        self._observing.finish()
        self._registry.plugins.stop().join(STOP_LIMIT_S)

    async def _end_connections(self, workload: int) -> None:
        self._connection_news.ended(await self._survey.ended_with(workload))

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
        try:
            async with asyncio.timeout(STOP_LIMIT_S):
                await (self._keeper.release() if self._release else self._keeper.stop_traps())
        except (ControlError, TimeoutError):
            log.warning("the keeper does not answer; the trap process may run on")
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
        settings = await self._settle_traps()
        try:
            async with asyncio.timeout(TRAPS_START_LIMIT_S):
                await self._traps.connected.wait()
        except TimeoutError:
            raise ControlError(
                "the trap process does not start", hint="its messages are in the log above"
            ) from None
        self._traps.send(messages.Settings(settings))

    async def _settle_traps(self) -> states.TrapSettings:
        """Let the keeper run traps by the configuration in force, now and whenever it ends."""
        settings = make_settings(self._config, self._encryption.module)
        await self._keeper.store("settings", _encode(settings))
        argv = [sys.executable, "-m", "slim.broker.traps", *self._process_options()]
        await self._keeper.start_traps(argv, self._config.limits.gap_limit_s)
        return settings

    def _take_news(self, message: messages.ToControl) -> None:
        self._news.take(message)

    def _invalidate(self, askers: dict[str, set[Address]], port: int) -> None:
        for peer, addresses in askers.items():
            for address in addresses:
                packed = packed16(address)
                if peer == self._host:
                    self._traps.send(messages.DropFlows(packed, port))
                elif self._links is not None:
                    self._links.send(peer, peer_messages.Invalidate(packed, port))

    def _on_task_failed(self, is_vital: bool) -> None:
        self.counters["internal_errors"] += 1
        if is_vital:
            # Without it a change of policy would be in force for new connections only.
            log.critical("slimd ends, since policy is not enforced any more")
            self.stop()

    def _all_counters(self) -> dict[str, int]:
        parts = (self, self._observing, self._news, self._containers, self._resolver, self._inbound)
        counted = [*(part.counters for part in parts), self._revocation.counters]
        counted += [self._revocation.enforcing.counters, self._oci_agent.counters]
        if self._links is not None:
            counted += [self._links.counters, self._peering.counters]
        return {
            **{name: count for counters in counted for name, count in counters.items()},
            **{f"traps_{name}": count for name, count in self._news.traps_counters.items()},
            **self._registry.counters(),
        }
