"""Calls the hooks of plugins, one plugin at a time, and keeps what each call cost.

A failure is that of one plugin alone; what it means is for the caller to say.
"""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from slim.broker.errors import PluginError, SlimError, in_words
from slim.broker.plugin_loading import hook_names, remedy

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pluggy


@dataclass(frozen=True, slots=True)
class Raised:
    """In the place of a result: what the plugin raised instead."""

    error: Exception


@dataclass(slots=True)
class Cost:
    """What a plugin's implementation of one hook has cost so far; errors are among the calls."""

    calls: int = 0
    seconds: float = 0.0
    slowest_s: float = 0.0
    errors: int = 0

    def add(self, took_s: float, *, is_error: bool) -> None:
        self.calls += 1
        self.seconds += took_s
        self.slowest_s = max(self.slowest_s, took_s)
        self.errors += is_error


class HookCalls:
    """Every hook of the plugins of one manager."""

    def __init__(self, manager: pluggy.PluginManager) -> None:
        self._manager = manager
        self._callers = {hook: dict(self._callers_of(hook)) for hook in hook_names()}
        self.costs: defaultdict[tuple[str, str], Cost] = defaultdict(Cost)
        """By plugin and hook."""

    def plugins_with(self, hook: str) -> list[str]:
        """Names, in the order of calls."""
        return [*self._callers[hook]]

    def results(self, hook: str, **arguments: object) -> Iterator[tuple[str, object]]:
        """What each plugin with an opinion returned, or what it raised."""
        for name, caller in self._callers[hook].items():
            for result in self._call(name, hook, caller, arguments):
                yield name, result

    def results_of(self, plugin: str, hook: str, **arguments: object) -> list[object]:
        """As results, of one plugin."""
        return self._call(plugin, hook, self._callers[hook][plugin], arguments)

    def results_or_error(self, hook: str, **arguments: object) -> Iterator[tuple[str, object]]:
        """As results, but the first failure is raised, as a SlimError."""
        for name, result in self.results(hook, **arguments):
            match result:
                case Raised(SlimError() as error):
                    raise error
                case Raised(error):
                    raise PluginError(
                        f"plugin {name!r}: {hook} failed: {in_words(error)}", hint=remedy(name)
                    ) from error
                case _:
                    yield name, result

    def _call(
        self, plugin: str, hook: str, caller: pluggy.HookCaller, arguments: dict[str, object]
    ) -> list[object]:
        started = time.perf_counter()
        failure: Exception | None = None
        found: list[object] = []
        try:
            found = caller(**arguments)
        except Exception as error:  # noqa: BLE001 - whatever it is, the caller decides
            failure = error
        took_s = time.perf_counter() - started
        self.costs[plugin, hook].add(took_s, is_error=failure is not None)
        return found if failure is None else [Raised(failure)]

    def _callers_of(self, hook: str) -> Iterator[tuple[str, pluggy.HookCaller]]:
        """One caller per plugin that has the hook."""
        implementations = getattr(self._manager.hook, hook).get_hookimpls()
        for one in implementations:
            others = [other.plugin for other in implementations if other is not one]
            yield one.plugin_name, self._manager.subset_hook_caller(hook, others)
