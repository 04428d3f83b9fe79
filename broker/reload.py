"""SIGHUP and `slimctl reload`: everything is validated, then in force at once; or nothing is.

`prepare` reads and checks beside what runs, with plugins of its own, and touches nothing of it;
`Reloading.run` exchanges the parts within one turn of the event loop. What cannot change while
slimd runs keeps its value, and is named.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from slim.broker import queues
from slim.broker.config import check_host_addresses, check_host_ports, load_config
from slim.broker.errors import ConfigError, SlimError
from slim.broker.events import PolicyChanged
from slim.broker.peers.pki import load_host_credentials
from slim.broker.plugin_manager import Plugins
from slim.broker.plugin_settings import PluginSettings

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable
    from pathlib import Path

    from slim.broker.admission_keys import AdmissionKeys
    from slim.broker.config import BrokerConfig
    from slim.broker.discovery import DiscoveryBackend
    from slim.broker.discovery_choice import Discovery
    from slim.broker.inbound import Inbound
    from slim.broker.observing import Observing
    from slim.broker.peers.channel import PeerLinks
    from slim.broker.peers.pki import HostCredentials
    from slim.broker.registry import Registry, Workload
    from slim.broker.resolver import Resolver
    from slim.broker.revocation import Revocation
    from slim.broker.run_server import RunServer

log = logging.getLogger(__name__)

ENCRYPTION = "aesgcm"
SETTLE_LIMIT_S = 8.0

_FIXED: tuple[tuple[str, Callable[[BrokerConfig], object]], ...] = (
    ("guard", lambda config: config.guard),
    ("run_dir", lambda config: config.run_dir),
    ("[host] name", lambda config: config.host.name),
    ("[host] addresses", lambda config: config.host.addresses),
    ("[host] ports", lambda config: config.host.ports),
    ("[peers] listen", lambda config: config.peers.listen if config.peers else None),
    ("[log] format", lambda config: config.log.format),
)
"""What a running slimd cannot change: sockets are bound to it, or other processes hold it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A configuration that was found good, and what was made of it."""

    config: BrokerConfig
    """With the running values of what cannot change."""
    needs_restart: list[str]
    plugins: Plugins
    credentials: HostCredentials | None
    client_tls: ssl.SSLContext | None
    server_tls: ssl.SSLContext | None


def make_plugins(config: BrokerConfig) -> Plugins:
    """New instances of all plugins, configured; ConfigError or PluginError when one refuses."""
    plugins = Plugins(block=config.plugins.block, load=config.plugins.load, shaping=config.shaping)
    plugins.configure(
        PluginSettings(
            host=config.host.name, source=str(config.path), tables=dict(config.plugin_settings)
        )
    )
    return plugins


def load_credentials(config: BrokerConfig) -> HostCredentials | None:
    peers = config.peers
    if peers is None:
        return None
    return load_host_credentials(peers.certificate, peers.key, peers.authority)


def check_container_limits(config: BrokerConfig) -> None:
    """SlimError when [[shaping.container]] asks for what this host cannot enforce."""
    if config.shaping.containers:
        queues.check(config.host.addresses)


def prepare(path: Path, running: BrokerConfig, host: str) -> Prepared | list[SlimError]:
    """Read and check everything, or give all mistakes that were found. May take its time."""
    try:
        new = load_config(path)
    except SlimError as error:
        # Nothing else can be looked at.
        return [error]
    mistakes: list[SlimError] = []
    config, needs_restart = _keep_fixed(running, new)
    plugins = None
    credentials, client_tls, server_tls = None, None, None
    for check in (check_host_addresses, check_host_ports, check_container_limits):
        try:
            check(new)
        except SlimError as error:
            mistakes.append(error)
    try:
        credentials = load_credentials(config)
        if credentials is not None:
            client_tls, server_tls = credentials.client_context(), credentials.server_context()
            _check_host(config, credentials, host)
    except SlimError as error:
        mistakes.append(error)
    try:
        plugins = make_plugins(config)
        if ENCRYPTION not in plugins.encryption_backends():
            raise ConfigError(
                f"{config.path}: [plugins] block: {ENCRYPTION!r} seals the admission records",
                hint="do not block it",
            )
    except SlimError as error:
        mistakes += [error, *error.more]
    if mistakes or plugins is None:
        return mistakes
    return Prepared(
        config=config,
        needs_restart=needs_restart,
        plugins=plugins,
        credentials=credentials,
        client_tls=client_tls,
        server_tls=server_tls,
    )


def _keep_fixed(running: BrokerConfig, new: BrokerConfig) -> tuple[BrokerConfig, list[str]]:
    """The new configuration with the running values of what cannot change; and what that is."""
    needs_restart = [name for name, read in _FIXED if read(running) != read(new)]
    peers = new.peers
    if running.peers is None or new.peers is None:
        peers = running.peers
    elif new.peers is not None:
        peers = dataclasses.replace(new.peers, listen=running.peers.listen)
    config = dataclasses.replace(
        new,
        guard=running.guard,
        run_dir=running.run_dir,
        host=running.host,
        peers=peers,
        log=dataclasses.replace(new.log, format=running.log.format),
    )
    return config, needs_restart


def _check_host(config: BrokerConfig, credentials: HostCredentials, host: str) -> None:
    if credentials.identity.host != host:
        raise ConfigError(
            f"{credentials.certificate_file} is the certificate of {credentials.identity.host!r}, "
            f"and this slimd is {host!r} to its peers",
            hint="issue one for this host, or restart slimd to change its name",
        )


@dataclass(slots=True, kw_only=True)
class Reloading:
    """Exchanges the parts of a running control; borrows them."""

    host: str
    registry: Registry
    resolver: Resolver
    inbound: Inbound
    keys: AdmissionKeys
    discovery: Discovery
    run_server: RunServer
    links: PeerLinks | None
    revocation: Revocation
    observing: Observing

    async def run(self, running: BrokerConfig) -> Prepared | list[SlimError]:
        """Put the file in force; or its mistakes, which are logged, and all is as it was."""
        prepared = await asyncio.to_thread(prepare, running.path, running, self.host)
        backends: list[DiscoveryBackend] | None = None
        if isinstance(prepared, Prepared):
            try:
                self._check_overlays(prepared.config)
                backends = self.discovery.make(
                    prepared.config, prepared.plugins, prepared.credentials
                )
            except SlimError as error:
                prepared = [error]
        if not isinstance(prepared, Prepared):
            for mistake in prepared:
                log.error("not reloaded: %s%s", mistake.message, _hint(mistake))
            return prepared
        self._exchange(running, prepared, backends)
        return prepared

    def _exchange(
        self, running: BrokerConfig, new: Prepared, backends: list[DiscoveryBackend] | None
    ) -> None:
        """All at once: nothing else of control runs meanwhile."""
        config = new.config
        self.registry.overlays = config.overlays
        replaced = self.registry.plugins
        self.registry.use_policy(new.plugins)
        self.observing.use(new.plugins)
        replaced.stop()
        self.resolver.deny_errno = config.policy.errno
        self.inbound.lifetime_s = config.limits.flow_lifetime_s
        self.inbound.forget_flows()
        self.keys.use_lifetime(config.limits.flow_lifetime_s)
        self.discovery.use(backends, config, new.plugins, new.credentials)
        self.run_server.use(config.slim_run)
        if self.links is not None and new.credentials and new.client_tls and new.server_tls:
            self.links.use_credentials(new.credentials, new.client_tls, new.server_tls)
        logging.getLogger().setLevel(config.log.level.upper())
        self._relabel(running, config)
        self.revocation.policy_changed()
        log.info("reloaded %s", config.path)
        self.observing.publish(PolicyChanged(epoch=self.registry.epoch))
        for key in new.needs_restart:
            log.warning("%s: %s changed: restart slimd to put it in force", config.path, key)

    def _relabel(self, running: BrokerConfig, config: BrokerConfig) -> None:
        """A workload that has what its namespace was declared with gets what it is now."""
        before = {each.netns: each for each in running.slim_run.namespaces}
        for declared in config.slim_run.namespaces:
            old = before.get(declared.netns)
            workload = self._workload_in(declared.netns)
            if workload is None or old is None:
                continue
            state = workload.state
            if (state.name, state.namespace, state.labels) != (
                old.workload,
                old.namespace,
                old.labels,
            ):
                # Root started it as something else.
                continue
            new = (declared.workload, declared.namespace, dict(declared.labels))
            if self.registry.relabel(workload, *new):
                log.info("workload %s is %s, labels %s, now", old.workload, new[0], new[2])
                self.revocation.relabelled(workload, self.host)

    def _workload_in(self, netns: Path) -> Workload | None:
        try:
            there = os.stat(netns)
        except OSError:
            return None
        for workload in self.registry:
            own = os.fstat(workload.netns_fd)
            if (own.st_dev, own.st_ino) == (there.st_dev, there.st_ino):
                return workload
        return None

    def _check_overlays(self, config: BrokerConfig) -> None:
        names = {overlay.name for overlay in config.overlays}
        for workload in self.registry:
            if not workload.is_bystander and workload.state.overlay not in names:
                raise ConfigError(
                    f"{config.path}: [[overlay]]: {workload.state.overlay!r} is gone, and workload "
                    f"{workload.state.name!r} is on it",
                    hint="end the workload first, or leave the overlay in",
                )


def _hint(mistake: SlimError) -> str:
    return f" ({mistake.hint})" if mistake.hint else ""
