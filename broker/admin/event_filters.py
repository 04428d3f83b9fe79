"""The filter language (filters.py) for events: `event:connection-* path:denied -workload:web`."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from slim.broker.admin.filters import (
    Language,
    Names,
    choice_test,
    end_test,
    glob_test,
    number_test,
    port_test,
)
from slim.broker.events import KINDS, AnyEvent, ConnectionEvent, Event, describe, kind_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from slim.broker.admin.filters import HasEnds, Makers, Test


def event_language() -> Language[Event]:
    """An event that has not got what is asked for does not match."""
    makers: Makers[Event] = {
        "event": _kind,
        "workload": _text("workload"),
        "src": lambda value: _of_connections(end_test(value, 0, Names())),
        "dst": lambda value: _of_connections(end_test(value, 1, Names())),
        "port": lambda value: _of_connections(port_test(value)),
        "dir": choice_test(("out", "in"), lambda event: [_get(event, "direction")]),
        "path": choice_test(("fast", "fallback", "denied"), lambda event: [_get(event, "path")]),
        "reason": _text("reason"),
        "verdict": choice_test(("allow", "deny", "audit"), lambda event: [_get(event, "verdict")]),
        "rule": _text("rule"),
        "peer": _text("peer_host"),
        "container": lambda value: lambda event: fnmatchcase(_get(event, "container"), f"{value}*"),
        "plugin": _text("plugin"),
        "id": number_test(lambda event: getattr(event, "cookie", 0)),
    }
    return Language(makers, lambda event: f"{kind_of(event)} {describe(event)}")


def _kind(value: str) -> Test[Event]:
    if not any(fnmatchcase(kind, value) for kind in KINDS):
        raise ValueError(f"the kinds are {', '.join(sorted(KINDS))}")
    return lambda event: fnmatchcase(kind_of(event), value)


def _get(event: AnyEvent, field: str) -> str:
    return str(getattr(event, field, ""))


def _text(field: str) -> Callable[[str], Test[Event]]:
    def values(event: Event) -> list[str]:
        # An empty text would match `*`.
        return [text for text in (_get(event, field),) if text]

    return glob_test(values)


def _of_connections(test: Test[HasEnds]) -> Test[Event]:
    return lambda event: isinstance(event, ConnectionEvent) and test(event)
