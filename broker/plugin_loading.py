"""Finds and loads plugins; who calls them is plugin_calls.py.

Order: blocked names, the built-in plugins, installed ones (entry points of group "slim"), modules
named by the configuration.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import importlib.metadata
import logging
from typing import TYPE_CHECKING

import pluggy

from slim.broker import hookspecs
from slim.broker.errors import PluginError, in_words

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

log = logging.getLogger(__name__)

BUILTIN_PLUGINS = (
    "slim.plugins.policy.rules",
    "slim.plugins.policy.networkpolicy",
    "slim.plugins.discovery.neighbours",
    "slim.plugins.discovery.static",
    "slim.plugins.discovery.rendezvous",
    "slim.plugins.encryption.aesgcm",
    "slim.plugins.observe.jsonlines",
)
ENTRY_POINT_GROUP = "slim"
BLOCK_VARIABLE = "SLIM_BLOCKED_PLUGINS"
DISTRIBUTION = "slim-broker"


class PluginLoader:
    """Loads into a manager of its own; PluginError names the plugin that cannot be."""

    def __init__(self, blocked: Iterable[str]) -> None:
        self.manager = pluggy.PluginManager(hookspecs.PROJECT)
        self.manager.add_hookspecs(hookspecs)
        self.versions: dict[str, str] = {}
        """Of every plugin that is loaded, by its name."""
        self.blocked = {*blocked}

    def load(self, modules: Iterable[str], *, entry_points: bool) -> None:
        """Load everything there is, and these modules."""
        skipped = {
            *self._load_modules(BUILTIN_PLUGINS, own=True),
            *(self._load_entry_points() if entry_points else ()),
            *self._load_modules(modules, own=False),
        }
        for name in sorted(self.blocked - skipped):
            log.warning("blocked plugin %r does not exist", name)
        self._check_hook_names()

    def _load_modules(self, modules: Iterable[str], *, own: bool) -> Iterator[str]:
        """Load modules; gives the names that were skipped because they are blocked."""
        for module in modules:
            name = module.rpartition(".")[2]
            if name in self.blocked:
                yield name
                continue
            loaded = self._register(
                name, module, functools.partial(importlib.import_module, module)
            )
            version = _own_version() if own else getattr(loaded, "__version__", "")
            self.versions[name] = str(version)

    def _load_entry_points(self) -> Iterator[str]:
        """As _load_modules, for what is installed."""
        for entry in sorted(importlib.metadata.entry_points(group=ENTRY_POINT_GROUP)):
            if entry.name in self.blocked:
                yield entry.name
                continue
            self._register(entry.name, entry.value, entry.load)
            self.versions[entry.name] = entry.dist.version if entry.dist is not None else ""

    def _register(self, name: str, source: str, load: Callable[[], object]) -> object:
        if self.manager.has_plugin(name):
            raise PluginError(f"plugin {name!r} ({source}): the name is taken", hint=remedy(name))
        try:
            loaded = load()
            plugin = getattr(loaded, "Plugin", loaded)
            if isinstance(plugin, type):
                plugin = plugin()
            self.manager.register(plugin, name)
        except Exception as error:
            raise PluginError(
                f"plugin {name!r} ({source}) could not be loaded: {in_words(error)}",
                hint=remedy(name),
            ) from error
        if not self.manager.get_hookcallers(plugin):
            raise PluginError(
                f"plugin {name!r} ({source}) has no hooks",
                hint="mark its functions, or those of its class Plugin, with hookimpl",
            )
        return loaded

    def _check_hook_names(self) -> None:
        try:
            self.manager.check_pending()
        except pluggy.PluginValidationError as error:
            callers = self.manager.get_hookcallers(error.plugin) or []
            unknown = next(caller.name for caller in callers if not caller.has_spec())
            near = difflib.get_close_matches(unknown, hook_names(), 1)
            name = self.manager.get_name(error.plugin)
            raise PluginError(
                f"plugin {name!r} has a hook {unknown}, which does not exist",
                hint=f"did you mean {near[0]}?" if near else "docs/hooks.md lists the hooks",
            ) from error


def hook_names() -> list[str]:
    return [name for name in vars(hookspecs) if name.startswith("slim_")]


def remedy(plugin: str) -> str:
    """The hint of an error that a plugin is to blame for."""
    return f"repair or remove it, or start without it: {BLOCK_VARIABLE}={plugin}"


def _own_version() -> str:
    try:
        return importlib.metadata.version(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        return ""
