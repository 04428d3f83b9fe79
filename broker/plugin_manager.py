"""Finds, orders, blocks and calls plugins. Nobody else sees pluggy, or what a plugin raises.

Order: blocked names, the built-in plugins, installed ones (entry points of group "slim"), modules
named by the configuration. Policy does not depend on it: verdicts combine by strictness.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import importlib.metadata
import logging
import os
import threading
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pluggy

from slim.broker import hookspecs
from slim.broker.decisions import MAX_RULE, Verdict, combine, conclude
from slim.broker.encryption import KEY_BYTES, NONCE_BYTES, TAG_BYTES, EncryptionBackend
from slim.broker.errors import ConfigError, PluginError, SlimError
from slim.broker.shaping import find_mistake
from slim.broker.shaping_rules import ShapingRules

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from slim.broker.decisions import Direction, FlowRequest, Identity
    from slim.broker.discovery import DiscoveryBackend, DiscoveryContext, Located
    from slim.broker.endpoints import Address
    from slim.broker.events import Event
    from slim.broker.plugin_settings import PluginSettings

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
_OWN_NAMES = {module.rpartition(".")[2] for module in BUILTIN_PLUGINS}
ENTRY_POINT_GROUP = "slim"
BLOCK_VARIABLE = "SLIM_BLOCKED_PLUGINS"
DISTRIBUTION = "slim-broker"
MAX_LOCATED_LIFETIME_S = 3600.0
MUTE_AFTER = 10
"""So many events running on which slim_observe raised, or was slow."""
SLOW_OBSERVER_S = 0.05
_BACKEND_METHODS = ("locate", "workload_added", "workload_removed", "close")


@dataclass(frozen=True, slots=True)
class _Raised:
    """In the place of a result: what the plugin raised instead."""

    error: Exception


class Plugins:
    """All plugins of this slimd: one method per hook, and the error policy of each hook."""

    def __init__(
        self,
        *,
        block: Iterable[str] = (),
        load: Iterable[str] = (),
        entry_points: bool = True,
        environ: Mapping[str, str] = os.environ,
        shaping: ShapingRules | None = None,
    ) -> None:
        """Load everything; PluginError names the plugin that cannot be, and the remedy.

        `block` are names of plugins, as is SLIM_BLOCKED_PLUGINS (separated by commas); `load` are
        names of modules; without `entry_points` nothing that is merely installed is loaded.
        `shaping` are the limits that the configuration adds to what plugins allow.
        """
        self._manager = pluggy.PluginManager(hookspecs.PROJECT)
        self._manager.add_hookspecs(hookspecs)
        self._versions: dict[str, str] = {}
        self._complained: set[tuple[str, str]] = set()
        self.errors: Counter[str] = Counter()
        """Exceptions that plugins raised, by plugin."""
        self.observing_s: Counter[str] = Counter()
        """What slim_observe took, in seconds, by plugin."""
        self.on_failed: Callable[[str, str, str], None] = lambda plugin, hook, reason: None
        """Told of every exception: plugin, hook, what it was."""
        self._failed_observers: Counter[str] = Counter()
        """Failures running, by plugin."""
        named = environ.get(BLOCK_VARIABLE, "").split(",")
        self.shaping = shaping or ShapingRules()
        self._blocked = {*block, *filter(None, map(str.strip, named))}
        skipped = {
            *self._load_modules(BUILTIN_PLUGINS, own=True),
            *(self._load_entry_points() if entry_points else ()),
            *self._load_modules(load, own=False),
        }
        for name in sorted(self._blocked - skipped):
            log.warning("blocked plugin %r does not exist", name)
        self._check_hook_names()
        self._callers = {hook: [*self._callers_of(hook)] for hook in _hook_names()}
        self._observers = self._callers["slim_observe"]

    # --- hooks, one method each

    def configure(self, settings: PluginSettings) -> None:
        """slim_configure; ConfigError when a plugin refuses, or a table belongs to none."""
        known = {*self._versions, *self._blocked}
        for table in settings.tables:
            if table not in known:
                near = difflib.get_close_matches(table, known, 1)
                raise ConfigError(
                    f"{settings.source}: [plugins.{table}]: there is no plugin {table!r}",
                    hint=f"did you mean {near[0]!r}?"
                    if near
                    else f"there are: {', '.join(sorted(known))}",
                )
        for _ in self._results_or_error("slim_configure", settings=settings):
            pass

    def decide(self, request: FlowRequest) -> Verdict:
        """slim_decide, and the configuration's own limits; a plugin that fails denies."""
        verdicts = []
        for name, result in self._results("slim_decide", request=request):
            match result:
                case Verdict(allow=bool(), rule=str(), shaping=shaping, encrypt=bool()):
                    mistake = find_mistake(shaping) if shaping is not None else ""
                    rule = f"{name}: shaping: {mistake}"
                    verdicts.append(Verdict(False, rule[:MAX_RULE]) if mistake else result)
                case _Raised(error):
                    self._complain(name, "slim_decide", error)
                    rule = f"{name}: slim_decide raised {type(error).__name__}"
                    verdicts.append(Verdict(False, rule[:MAX_RULE]))
                case _:
                    rule = f"{name}: slim_decide returned {type(result).__name__}"
                    verdicts.append(Verdict(False, rule[:MAX_RULE]))
        return conclude(combine(verdicts), self.shaping.shape(request))

    def may_shape(self, workload: Identity | None) -> bool:
        """Whether a verdict could limit a connection of the workload; None: of any workload.

        Of plugins that are not our own nobody knows.
        """
        return self.shaping.may_shape(workload) or any(
            name not in _OWN_NAMES for name, _ in self._callers["slim_decide"]
        )

    def isolates(self, workload: Identity, direction: Direction) -> bool:
        """slim_isolates; a plugin that fails isolates."""
        results = self._results("slim_isolates", workload=workload, direction=direction)
        for name, result in results:
            if isinstance(result, _Raised):
                self._complain(name, "slim_isolates", result.error)
            if result is not False:
                return True
        return False

    def discovery_backends(self, context: DiscoveryContext) -> dict[str, DiscoveryBackend]:
        """slim_discovery_backends, by name; what they raise is logged, and no opinion."""
        backends = self._backends("slim_discovery_backends", _is_discovery_backend, context=context)
        return {name: _GuardedBackend(backend) for name, (_, backend) in backends.items()}

    def encryption_backends(self) -> dict[str, EncryptionBackend]:
        """slim_encryption_backends, by name; the functions of each were tried."""
        backends = self._backends(
            "slim_encryption_backends", lambda backend: isinstance(backend, EncryptionBackend)
        )
        for plugin, backend in backends.values():
            try:
                _try_sealing(backend.module)
            except Exception as error:
                raise PluginError(
                    f"plugin {plugin!r}: module {backend.module!r} does not seal as it must: "
                    f"{_text(error)}",
                    hint=_remedy(plugin),
                ) from error
        return {name: backend for name, (_, backend) in backends.items()}

    @property
    def has_observers(self) -> bool:
        """Whether any plugin still wants to hear of events."""
        return any(self._failed_observers[name] < MUTE_AFTER for name, _ in self._observers)

    def observe(self, event: Event) -> None:
        """slim_observe; a plugin that goes on failing, or being slow, hears no more."""
        for name, caller in self._observers:
            if self._failed_observers[name] >= MUTE_AFTER:
                continue
            started = time.perf_counter()
            failure: Exception | None = None
            try:
                caller(event=event)
            except Exception as error:  # noqa: BLE001 - whatever it is, others hear of the event
                failure = error
            took_s = time.perf_counter() - started
            self.observing_s[name] += took_s  # type: ignore[assignment]
            if failure is None and took_s > SLOW_OBSERVER_S:
                failure = TimeoutError(f"took {took_s * 1000:.0f} ms, and everything waits for it")
            if failure is None:
                self._failed_observers[name] = 0
                continue
            self._failed_observers[name] += 1
            self._complain(name, "slim_observe", failure)
            if self._failed_observers[name] == MUTE_AFTER:
                log.error("plugin %r hears of no event any more", name)

    def stop(self) -> threading.Thread:
        """slim_stop, in a thread that keeps nobody from ending; wait for it, but not for long."""
        thread = threading.Thread(target=self._stop, name="slim_stop", daemon=True)
        thread.start()
        return thread

    def _stop(self) -> None:
        for name, result in self._results("slim_stop"):
            if isinstance(result, _Raised):
                log.error("plugin %r: slim_stop raised %s", name, _text(result.error))

    # --- what is loaded

    def describe(self) -> list[tuple[str, str, list[str]]]:
        """(name, version, hooks) of every plugin, by name."""
        described = []
        for name, version in sorted(self._versions.items()):
            callers = self._manager.get_hookcallers(self._manager.get_plugin(name)) or []
            described.append((name, version, sorted(caller.name for caller in callers)))
        return described

    def trace(self) -> None:
        """Log every hook call and its results from now on, at level DEBUG."""

        def before(hook: str, impls: Sequence[pluggy.HookImpl], arguments: Any) -> None:
            names = ", ".join(impl.plugin_name for impl in impls)
            log.debug("%s(%s) to %s", hook, dict(arguments), names)

        def after(
            outcome: pluggy.Result[Any], hook: str, impls: Sequence[pluggy.HookImpl], _: Any
        ) -> None:
            log.debug("%s -> %s", hook, outcome.exception or outcome.get_result())

        self._manager.add_hookcall_monitoring(before, after)

    # --- loading

    def _load_modules(self, modules: Iterable[str], *, own: bool) -> Iterator[str]:
        """Load modules; gives the names that were skipped because they are blocked."""
        for module in modules:
            name = module.rpartition(".")[2]
            if name in self._blocked:
                yield name
                continue
            loaded = self._register(
                name, module, functools.partial(importlib.import_module, module)
            )
            version = _own_version() if own else getattr(loaded, "__version__", "")
            self._versions[name] = str(version)

    def _load_entry_points(self) -> Iterator[str]:
        """As _load_modules, for what is installed."""
        for entry in sorted(importlib.metadata.entry_points(group=ENTRY_POINT_GROUP)):
            if entry.name in self._blocked:
                yield entry.name
                continue
            self._register(entry.name, entry.value, entry.load)
            self._versions[entry.name] = entry.dist.version if entry.dist is not None else ""

    def _register(self, name: str, source: str, load: Callable[[], object]) -> object:
        if self._manager.has_plugin(name):
            raise PluginError(f"plugin {name!r} ({source}): the name is taken", hint=_remedy(name))
        try:
            loaded = load()
            plugin = getattr(loaded, "Plugin", loaded)
            if isinstance(plugin, type):
                plugin = plugin()
            self._manager.register(plugin, name)
        except Exception as error:
            raise PluginError(
                f"plugin {name!r} ({source}) could not be loaded: {_text(error)}",
                hint=_remedy(name),
            ) from error
        if not self._manager.get_hookcallers(plugin):
            raise PluginError(
                f"plugin {name!r} ({source}) has no hooks",
                hint="mark its functions, or those of its class Plugin, with hookimpl",
            )
        return loaded

    def _check_hook_names(self) -> None:
        try:
            self._manager.check_pending()
        except pluggy.PluginValidationError as error:
            callers = self._manager.get_hookcallers(error.plugin) or []
            unknown = next(caller.name for caller in callers if not caller.has_spec())
            near = difflib.get_close_matches(unknown, _hook_names(), 1)
            name = self._manager.get_name(error.plugin)
            raise PluginError(
                f"plugin {name!r} has a hook {unknown}, which does not exist",
                hint=f"did you mean {near[0]}?" if near else "docs/hooks.md lists the hooks",
            ) from error

    # --- calling

    def _callers_of(self, hook: str) -> Iterator[tuple[str, pluggy.HookCaller]]:
        """One caller per plugin that has the hook, so that a failure is that plugin's alone."""
        implementations = getattr(self._manager.hook, hook).get_hookimpls()
        for one in implementations:
            others = [other.plugin for other in implementations if other is not one]
            yield one.plugin_name, self._manager.subset_hook_caller(hook, others)

    def _results(self, hook: str, **arguments: object) -> Iterator[tuple[str, object]]:
        """What each plugin with an opinion returned, or what it raised."""
        for name, caller in self._callers[hook]:
            try:
                results = caller(**arguments)
            except Exception as error:  # noqa: BLE001 - whatever it is, the caller decides
                yield name, _Raised(error)
            else:
                for result in results:
                    yield name, result

    def _results_or_error(self, hook: str, **arguments: object) -> Iterator[tuple[str, object]]:
        for name, result in self._results(hook, **arguments):
            match result:
                case _Raised(SlimError() as error):
                    raise error
                case _Raised(error):
                    raise PluginError(
                        f"plugin {name!r}: {hook} failed: {_text(error)}",
                        hint=_remedy(name),
                    ) from error
                case _:
                    yield name, result

    def _backends(
        self, hook: str, is_right: Callable[[Any], bool], **arguments: object
    ) -> dict[str, tuple[str, Any]]:
        """What a registration hook gave: plugin and backend, by the backend's name."""
        found: dict[str, tuple[str, Any]] = {}
        for plugin, result in self._results_or_error(hook, **arguments):
            if not isinstance(result, list) or not all(map(is_right, result)):
                raise PluginError(
                    f"plugin {plugin!r}: {hook} returned {result!r}, which is no list of backends",
                    hint="docs/hooks.md says what a backend is",
                )
            for backend in result:
                if backend.name in found:
                    other, _ = found[backend.name]
                    raise PluginError(
                        f"plugins {other!r} and {plugin!r} both have a backend {backend.name!r}",
                        hint=_remedy(plugin),
                    )
                found[backend.name] = (plugin, backend)
        return found

    def _complain(self, plugin: str, hook: str, error: Exception) -> None:
        self.errors[plugin] += 1
        # The traceback once: a broken plugin fails for every flow.
        first = (plugin, hook) not in self._complained
        self._complained.add((plugin, hook))
        cause = error if first else None
        log.error("plugin %r: %s raised %s", plugin, hook, _text(error), exc_info=cause)
        self.on_failed(plugin, hook, _text(error))


class _GuardedBackend:
    """A discovery backend whose failures are logged and count as no opinion."""

    def __init__(self, backend: DiscoveryBackend) -> None:
        self.name = backend.name
        self._backend = backend
        self._failed = False

    async def locate(self, workload: int, destination: Address) -> Located | None:
        try:
            located = await self._backend.locate(workload, destination)
            if located is None or 0 < located.lifetime_s <= MAX_LOCATED_LIFETIME_S:
                return located
            raise ValueError(f"a lifetime of {located.lifetime_s} s")
        except Exception as error:  # noqa: BLE001 - any failure is no opinion
            self._complain(f"locating {destination}", error)
            return None

    def workload_added(self, workload: int, addresses: tuple[Address, ...]) -> None:
        self._call("adding a workload", self._backend.workload_added, workload, addresses)

    def workload_removed(self, workload: int) -> None:
        self._call("removing a workload", self._backend.workload_removed, workload)

    def close(self) -> None:
        self._call("closing", self._backend.close)

    def _call(self, what: str, method: Callable[..., None], *arguments: object) -> None:
        try:
            method(*arguments)
        except Exception as error:  # noqa: BLE001 - slimd goes on without this backend
            self._complain(what, error)

    def _complain(self, what: str, error: Exception) -> None:
        # The traceback once: a broken backend fails for every flow.
        first, self._failed = not self._failed, True
        cause = error if first else None
        log.error("discovery %r: %s: %s", self.name, what, _text(error), exc_info=cause)


def _try_sealing(module: str) -> None:
    """Import the module and see that its functions seal; ValueError when anything opens wrongly."""
    loaded = importlib.import_module(module)
    # Wrong in one place each: key, nonce, sealed text, associated data.
    right = (bytes(KEY_BYTES), bytes(NONCE_BYTES), b"text", b"associated")
    key, nonce, text, associated = right
    sealed = loaded.seal(*right)
    if len(sealed) != len(text) + TAG_BYTES or loaded.open(key, nonce, sealed, associated) != text:
        raise ValueError("what was sealed does not open again")
    arguments = (key, nonce, sealed, associated)
    for place, argument in enumerate(arguments):
        changed = (*arguments[:place], b"\1" + argument[1:], *arguments[place + 1 :])
        try:
            loaded.open(*changed)
        except ValueError:
            continue
        raise ValueError("what was changed opens too")


def _hook_names() -> list[str]:
    return [name for name in vars(hookspecs) if name.startswith("slim_")]


def _is_discovery_backend(backend: Any) -> bool:
    return isinstance(getattr(backend, "name", None), str) and all(
        callable(getattr(backend, method, None)) for method in _BACKEND_METHODS
    )


def _remedy(plugin: str) -> str:
    return f"repair or remove it, or start without it: {BLOCK_VARIABLE}={plugin}"


def _text(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _own_version() -> str:
    try:
        return importlib.metadata.version(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        return ""
