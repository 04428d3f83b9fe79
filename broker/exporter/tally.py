"""Counts what happens: slimd's events (events.py) as counters and histograms.

Counting begins with the exporter, so that one which starts again counts nothing twice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram

from slim.broker.events import (
    ConnectionClosed,
    ConnectionOpened,
    ConnectionsCut,
    EventsLost,
    SourceDenied,
    WouldDeny,
    kind_of,
)
from slim.broker.exporter.names import LabelValues

if TYPE_CHECKING:
    from collections.abc import Iterable

    from slim.broker.events import Event

SETUP_BUCKETS_S = (
    *(50e-6, 100e-6, 200e-6, 300e-6, 500e-6, 750e-6),
    *(1e-3, 2e-3, 5e-3, 20e-3, 100e-3, 1.0),
)
LIFE_BUCKETS_S = (0.01, 0.1, 1, 10, 60, 600, 3600, 86400)


class EventTally:
    """Used by one thread; scrapes may read meanwhile."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._rules, self._reasons = LabelValues(), LabelValues()
        self._events = Counter("slim_events", "Events of slimd.", ["event"], registry=registry)
        self._lost = Counter(
            "slim_events_lost", "Events that slimd or we were too slow for.", registry=registry
        )
        self._opened = Counter(
            "slim_connections_opened",
            "Connections that programs got, or were refused (path denied).",
            ["direction", "path", "verdict"],
            registry=registry,
        )
        self._fallbacks = Counter(
            "slim_fallbacks", "Connections over the overlay.", ["reason"], registry=registry
        )
        self._verdicts = Counter(
            "slim_verdicts", "Verdicts behind connections.", ["verdict", "rule"], registry=registry
        )
        self._setup = Histogram(
            "slim_setup_seconds",
            "From a trapped call until the socket was in its place.",
            ["direction", "path"],
            buckets=SETUP_BUCKETS_S,
            registry=registry,
        )
        self._life = Histogram(
            "slim_connection_seconds",
            "How long connections lived that are over.",
            ["path"],
            buckets=LIFE_BUCKETS_S,
            registry=registry,
        )
        self._cut = Counter(
            "slim_connections_cut", "Connections that slimd ended.", ["why"], registry=registry
        )
        self._would_deny = Counter(
            "slim_would_deny",
            "Flows that a rule only watched for.",
            ["rule"],
            registry=registry,
        )
        self._sources_denied = Counter(
            "slim_sources_denied",
            "Sources that policy refused.",
            ["rule"],
            registry=registry,
        )

    def add(self, events: Iterable[Event]) -> None:
        for event in events:
            self._add(event)

    def _add(self, event: Event) -> None:
        self._events.labels(kind_of(event)).inc()
        match event:
            case ConnectionOpened():
                self._add_opened(event)
            case ConnectionClosed():
                self._life.labels(event.path).observe(event.duration_s)
            case ConnectionsCut():
                self._cut.labels(event.why).inc(event.count)
            case WouldDeny():
                self._would_deny.labels(self._rules.admit(event.rule)).inc()
            case SourceDenied():
                self._sources_denied.labels(self._rules.admit(event.rule)).inc()
            case EventsLost():
                self._lost.inc(event.count)
            case _:
                # Counted by its kind.
                pass

    def _add_opened(self, event: ConnectionOpened) -> None:
        self._opened.labels(event.direction, event.path, event.verdict).inc()
        self._verdicts.labels(event.verdict, self._rules.admit(event.rule)).inc()
        if event.path == "fallback":
            self._fallbacks.labels(self._reasons.admit(event.reason)).inc()
        if event.setup_us:
            self._setup.labels(event.direction, event.path).observe(event.setup_us / 1e6)
