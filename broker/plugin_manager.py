"""Finds, orders and calls plugins: one typed method per hook, and the error policy of each.

Nobody else sees `manager.hook`. Order of loading: built-ins, entry points of the group "slim",
modules that the configuration names; a blocked name is never loaded. Results never depend on it.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import logging
import os
from collections import Counter
from typing import TYPE_CHECKING

import pluggy

from slim.broker import hookspecs
from slim.broker.decisions import Direction, FlowRequest, Identity, Verdict, combine
from slim.broker.errors import ConfigError, PluginError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType

    from slim.broker.discovery import DiscoveryBackend, DiscoveryContext
    from slim.broker.encryption import EncryptionBackend
    from slim.broker.plugin_settings import PluginSettings

log = logging.getLogger(__name__)

BUILTIN_PLUGINS = {
    "aesgcm": "slim.plugins.encryption.aesgcm",
    "rendezvous": "slim.plugins.discovery.rendezvous",
    "rules": "slim.plugins.policy.rules",
    "static": "slim.plugins.discovery.static",
}
BLOCK_VARIABLE = "SLIM_BLOCKED_PLUGINS"


class Plugins:
    """All plugins of one slimd."""

    def __init__(
        self,
        *,
        block: Sequence[str] = (),
        load: Sequence[str] = (),
        entry_points: bool = True,
    ) -> None:
        self._manager = pluggy.PluginManager(hookspecs.PROJECT)
        self._manager.add_hookspecs(hookspecs)
        blocked = {*block, *os.environ.get(BLOCK_VARIABLE, "").split(",")} - {""}
        for name in blocked:
            self._manager.set_blocked(name)
        for name, module in BUILTIN_PLUGINS.items():
            if name not in blocked:
                self._register(_import(module), name)
        if entry_points:
            self._load_entry_points()
        for module in load:
            name = module.rpartition(".")[2]
            if name not in blocked:
                self._register(_import(module), name)
        self._check_hooks()
        self.errors: Counter[str] = Counter()
        """Exceptions that plugins raised, by plugin."""

    # --- one method per hook ------------------------------------------------------------------

    def configure(self, settings: PluginSettings) -> None:
        """slim_configure; ConfigError for a table that belongs to no plugin."""
        known = {name for name, _ in self._manager.list_name_plugin()}
        for table in settings.tables:
            if table not in known:
                raise ConfigError(
                    f"{settings.source}: [plugins.{table}] belongs to no loaded plugin",
                    hint=f"loaded plugins: {', '.join(sorted(known))}",
                )
        for implementation in self._manager.hook.slim_configure.get_hookimpls():
            with _naming(implementation.plugin_name):
                implementation.function(**_chosen(implementation, settings=settings))

    def decide(self, request: FlowRequest) -> Verdict:
        """slim_decide; a plugin that raises denies."""
        verdicts = []
        for implementation in self._manager.hook.slim_decide.get_hookimpls():
            try:
                verdict = implementation.function(**_chosen(implementation, request=request))
            except Exception:  # noqa: BLE001 - third-party code; a failed decision is a no
                verdict = Verdict(allow=False, rule=self._raised(implementation, "slim_decide"))
            if verdict is None:
                continue
            if not isinstance(verdict, Verdict):
                verdict = Verdict(
                    allow=False,
                    rule=f"plugin {implementation.plugin_name} returned {type(verdict).__name__}",
                )
            verdicts.append(verdict)
        return combine(verdicts)

    def isolates(self, workload: Identity, direction: Direction) -> bool:
        """slim_isolates; a plugin that raises isolates."""
        for implementation in self._manager.hook.slim_isolates.get_hookimpls():
            try:
                if implementation.function(
                    **_chosen(implementation, workload=workload, direction=direction)
                ):
                    return True
            except Exception:  # noqa: BLE001 - third-party code; in doubt the stricter answer
                self._raised(implementation, "slim_isolates")
                return True
        return False

    def discovery_backends(self, context: DiscoveryContext) -> dict[str, DiscoveryBackend]:
        """slim_discovery_backends, by name."""
        found: dict[str, DiscoveryBackend] = {}
        for implementation in self._manager.hook.slim_discovery_backends.get_hookimpls():
            with _naming(implementation.plugin_name):
                backends = implementation.function(**_chosen(implementation, context=context))
            for backend in backends or ():
                found[backend.name] = backend
        return found

    def encryption_backends(self) -> dict[str, EncryptionBackend]:
        """slim_encryption_backends, by name."""
        found: dict[str, EncryptionBackend] = {}
        for implementation in self._manager.hook.slim_encryption_backends.get_hookimpls():
            with _naming(implementation.plugin_name):
                for backend in implementation.function() or ():
                    found[backend.name] = backend
        return found

    def describe(self) -> list[tuple[str, str, list[str]]]:
        """(name, version, hooks) of every plugin, by name."""
        versions = {
            plugin: distribution.version
            for plugin, distribution in self._manager.list_plugin_distinfo()
        }
        described = []
        for name, plugin in self._manager.list_name_plugin():
            if plugin is None:
                continue
            hooks = sorted(caller.name for caller in self._manager.get_hookcallers(plugin) or ())
            version = versions.get(plugin) or getattr(plugin, "__version__", "") or _own_version()
            described.append((name, version, hooks))
        return sorted(described)

    # --- loading ------------------------------------------------------------------------------

    def _register(self, plugin: ModuleType, name: str) -> None:
        try:
            self._manager.register(plugin, name)
        except (ValueError, pluggy.PluginValidationError) as error:
            raise PluginError(
                f"plugin {name}: {error}",
                hint="compare its hooks with docs/hooks.md, or block it: [plugins] block",
            ) from None

    def _load_entry_points(self) -> None:
        try:
            self._manager.load_setuptools_entrypoints(hookspecs.PROJECT)
        except Exception as error:  # noqa: BLE001 - importing third-party code
            raise PluginError(
                f"a plugin of the entry point group {hookspecs.PROJECT!r} cannot be loaded: {error}",
                hint=f"uninstall it, or name it in {BLOCK_VARIABLE}",
            ) from None

    def _check_hooks(self) -> None:
        try:
            self._manager.check_pending()
        except pluggy.PluginValidationError as error:
            raise PluginError(
                f"plugin with an unknown hook: {error}", hint="docs/hooks.md lists every hook"
            ) from None

    def _raised(self, implementation: pluggy.HookImpl, hook: str) -> str:
        name = implementation.plugin_name
        self.errors[name] += 1
        log.exception("plugin %s raised in %s", name, hook)
        return f"plugin {name} raised"


class _naming:
    """Turns an exception of a plugin into a PluginError that names it."""

    def __init__(self, plugin: str) -> None:
        self._plugin = plugin

    def __enter__(self) -> None:
        return

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Exception) and not isinstance(error, ConfigError | PluginError):
            raise PluginError(f"plugin {self._plugin}: {error!r}") from error


def _chosen(implementation: pluggy.HookImpl, **arguments: object) -> dict[str, object]:
    # A plugin may name fewer arguments than the hook has; pluggy checked the names.
    return {name: arguments[name] for name in implementation.argnames}


def _import(module: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except Exception as error:  # noqa: BLE001 - importing third-party code
        raise PluginError(
            f"plugin module {module} cannot be imported: {error}",
            hint="install it into slimd's environment, or remove it from [plugins] load",
        ) from None


def _own_version() -> str:
    try:
        return importlib.metadata.version("slim-broker")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
