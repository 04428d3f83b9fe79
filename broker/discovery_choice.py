"""The discovery backends that are asked: made from the plugins, chosen by the configuration.

They may be exchanged while slimd runs; an answer that was on its way is then asked for anew.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from slim.broker.discovery_lending import Lending
from slim.broker.endpoints import Endpoint
from slim.broker.errors import ConfigError

if TYPE_CHECKING:
    from slim.broker.config import BrokerConfig
    from slim.broker.containers import Containers
    from slim.broker.discovery import DiscoveryBackend
    from slim.broker.peers.pki import HostCredentials
    from slim.broker.plugin_manager import Plugins
    from slim.broker.registry import Registry
    from slim.broker.resolver import Resolver

HOOK = "slim_discovery_backends"


class Discovery:
    """Owns the backends in use."""

    def __init__(
        self, host: str, registry: Registry, resolver: Resolver, containers: Containers
    ) -> None:
        self._host = host
        self._registry = registry
        self._resolver = resolver
        self._containers = containers
        self._backends: list[DiscoveryBackend] = []
        self._made_of: object = None

    def make(
        self, config: BrokerConfig, plugins: Plugins, credentials: HostCredentials | None
    ) -> list[DiscoveryBackend] | None:
        """The configured backends, in order; None when they would be those in use.

        ConfigError when one is not there.
        """
        if self._made_of is not None and self._made_of == _inputs(config, plugins, credentials):
            return None
        found = plugins.discovery_backends(self._lending(config, credentials))
        chosen = []
        for name in config.discovery.order:
            if name not in found:
                raise ConfigError(
                    f"{config.path}: [discovery] order: there is no backend {name!r}",
                    hint=f"there are: {', '.join(sorted(found))}",
                )
            chosen.append(found.pop(name))
        for unused in found.values():
            unused.close()
        return chosen

    def use(
        self,
        backends: list[DiscoveryBackend] | None,
        config: BrokerConfig,
        plugins: Plugins,
        credentials: HostCredentials | None,
    ) -> None:
        """Ask these from now on (what `make` gave); closes those in use."""
        if backends is None:
            return
        self.close()
        self._backends = backends
        self._made_of = _inputs(config, plugins, credentials)
        self._resolver.backends = backends
        self._resolver.forget_located()
        self._containers.announce_to(backends)

    def close(self) -> None:
        for backend in self._backends:
            backend.close()

    def _lending(self, config: BrokerConfig, credentials: HostCredentials | None) -> Lending:
        control = None
        if config.peers is not None:
            address = config.peers.listen.address
            if address.is_unspecified:
                address = config.host.addresses[0]
            control = Endpoint(address, config.peers.listen.port)
        return Lending(
            self._host, control, config.discovery.rendezvous_port, self._registry, credentials
        )


def _inputs(config: BrokerConfig, plugins: Plugins, credentials: HostCredentials | None) -> object:
    """Everything that backends are made of."""
    users = [name for name, _, hooks in plugins.describe() if HOOK in hooks]
    return (
        config.discovery,
        config.plugins,
        {name: config.plugin_settings.get(name) for name in users},
        (credentials.certificate_der, credentials.authorities) if credentials else None,
    )
