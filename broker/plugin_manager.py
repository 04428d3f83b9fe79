"""All plugins of a slimd, by hook. Nobody else sees pluggy, or what a plugin raises.

What they are is plugin_loading.py's, how they are called plugin_calls.py's; here is what a failure
means for each hook. Policy does not depend on the order: verdicts combine by strictness.
"""

from __future__ import annotations

import difflib
import logging
import os
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

from slim.broker.decisions import MAX_RULE, Verdict, combine, conclude
from slim.broker.discovery_guard import GuardedBackend
from slim.broker.encryption import EncryptionBackend, try_sealing
from slim.broker.errors import ConfigError, PluginError, in_words
from slim.broker.plugin_calls import HookCalls, Raised
from slim.broker.plugin_loading import BLOCK_VARIABLE, BUILTIN_PLUGINS, PluginLoader, remedy
from slim.broker.shaping import find_mistake
from slim.broker.shaping_rules import ShapingRules

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    import pluggy

    from slim.broker.decisions import Direction, FlowRequest, Identity
    from slim.broker.discovery import DiscoveryBackend, DiscoveryContext
    from slim.broker.events import Event
    from slim.broker.plugin_calls import Cost
    from slim.broker.plugin_settings import PluginSettings

log = logging.getLogger(__name__)

_OWN_NAMES = {module.rpartition(".")[2] for module in BUILTIN_PLUGINS}
MUTE_AFTER = 10
"""So many events running on which slim_observe raised, or was slow."""
SLOW_OBSERVER_S = 0.05
_BACKEND_METHODS = ("locate", "workload_added", "workload_removed", "close")


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
        self._complained: set[tuple[str, str]] = set()
        self.errors: Counter[str] = Counter()
        """Exceptions that plugins raised, by plugin."""
        self.on_failed: Callable[[str, str, str], None] = lambda plugin, hook, reason: None
        """Told of every exception: plugin, hook, what it was."""
        self._failed_observers: Counter[str] = Counter()
        """Failures running, by plugin."""
        named = environ.get(BLOCK_VARIABLE, "").split(",")
        self.shaping = shaping or ShapingRules()
        loader = PluginLoader({*block, *filter(None, map(str.strip, named))})
        loader.load(load, entry_points=entry_points)
        self._manager, self._versions, self._blocked = (
            loader.manager,
            loader.versions,
            loader.blocked,
        )
        self._calls = HookCalls(self._manager)
        self._observers = self._calls.plugins_with("slim_observe")

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
        for _ in self._calls.results_or_error("slim_configure", settings=settings):
            pass

    def decide(self, request: FlowRequest) -> Verdict:
        """slim_decide, and the configuration's own limits; a plugin that fails denies."""
        verdicts = []
        for name, result in self._calls.results("slim_decide", request=request):
            match result:
                case Verdict(allow=bool(), rule=str(), shaping=shaping, encrypt=bool()):
                    mistake = find_mistake(shaping) if shaping is not None else ""
                    rule = f"{name}: shaping: {mistake}"
                    verdicts.append(Verdict(False, rule[:MAX_RULE]) if mistake else result)
                case Raised(error):
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
            name not in _OWN_NAMES for name in self._calls.plugins_with("slim_decide")
        )

    def isolates(self, workload: Identity, direction: Direction) -> bool:
        """slim_isolates; a plugin that fails isolates."""
        results = self._calls.results("slim_isolates", workload=workload, direction=direction)
        for name, result in results:
            if isinstance(result, Raised):
                self._complain(name, "slim_isolates", result.error)
            if result is not False:
                return True
        return False

    def discovery_backends(self, context: DiscoveryContext) -> dict[str, DiscoveryBackend]:
        """slim_discovery_backends, by name; what they raise is logged, and no opinion."""
        backends = self._backends("slim_discovery_backends", _is_discovery_backend, context=context)
        return {name: GuardedBackend(backend) for name, (_, backend) in backends.items()}

    def encryption_backends(self) -> dict[str, EncryptionBackend]:
        """slim_encryption_backends, by name; the functions of each were tried."""
        backends = self._backends(
            "slim_encryption_backends", lambda backend: isinstance(backend, EncryptionBackend)
        )
        for plugin, backend in backends.values():
            try:
                try_sealing(backend.module)
            except Exception as error:
                raise PluginError(
                    f"plugin {plugin!r}: module {backend.module!r} does not seal as it must: "
                    f"{in_words(error)}",
                    hint=remedy(plugin),
                ) from error
        return {name: backend for name, (_, backend) in backends.items()}

    @property
    def has_observers(self) -> bool:
        """Whether any plugin still wants to hear of events."""
        return any(self._failed_observers[name] < MUTE_AFTER for name in self._observers)

    def observe(self, event: Event) -> None:
        """slim_observe; a plugin that goes on failing, or being slow, hears no more."""
        for name in self._observers:
            if self._failed_observers[name] >= MUTE_AFTER:
                continue
            started = time.perf_counter()
            failure: Exception | None = None
            for result in self._calls.results_of(name, "slim_observe", event=event):
                if isinstance(result, Raised):
                    failure = result.error
            took_s = time.perf_counter() - started
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
        for name, result in self._calls.results("slim_stop"):
            if isinstance(result, Raised):
                log.error("plugin %r: slim_stop raised %s", name, in_words(result.error))

    # --- what is loaded

    @property
    def costs(self) -> Mapping[tuple[str, str], Cost]:
        """What each hook of each plugin has cost since they were loaded, by plugin and hook."""
        return self._calls.costs

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

    # --- calling

    def _backends(
        self, hook: str, is_right: Callable[[Any], bool], **arguments: object
    ) -> dict[str, tuple[str, Any]]:
        """What a registration hook gave: plugin and backend, by the backend's name."""
        found: dict[str, tuple[str, Any]] = {}
        for plugin, result in self._calls.results_or_error(hook, **arguments):
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
                        hint=remedy(plugin),
                    )
                found[backend.name] = (plugin, backend)
        return found

    def _complain(self, plugin: str, hook: str, error: Exception) -> None:
        self.errors[plugin] += 1
        # The traceback once: a broken plugin fails for every flow.
        first = (plugin, hook) not in self._complained
        self._complained.add((plugin, hook))
        cause = error if first else None
        log.error("plugin %r: %s raised %s", plugin, hook, in_words(error), exc_info=cause)
        self.on_failed(plugin, hook, in_words(error))


def _is_discovery_backend(backend: Any) -> bool:
    return isinstance(getattr(backend, "name", None), str) and all(
        callable(getattr(backend, method, None)) for method in _BACKEND_METHODS
    )
