"""What slimd is like at a scrape: gauges, its own counters, peers, plugins, bytes."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.registry import Collector

from slim.broker.admin import client, messages
from slim.broker.admin.mirror import Mirror
from slim.broker.errors import SlimError
from slim.broker.exporter.names import LabelValues

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from prometheus_client import Metric

log = logging.getLogger(__name__)


class Snapshot(Collector):
    """Asks the slimd of a run directory at every scrape; one scrape at a time."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._one = threading.Lock()
        self._peers, self._counters = LabelValues(), LabelValues()
        self._mirror = Mirror()
        self._acked = self._received = 0

    def collect(self) -> Iterator[Metric]:
        with self._one:
            try:
                status = client.ask(self._run_dir, messages.GetStatus(), messages.Status)
                plugins = client.ask(self._run_dir, messages.GetPlugins(), messages.Plugins)
                self._add_traffic()
            except (SlimError, OSError) as error:
                log.debug("slimd does not answer: %s", error)
                yield GaugeMetricFamily("slim_up", "Whether slimd answers.", 0)
                return
            yield GaugeMetricFamily("slim_up", "Whether slimd answers.", 1)
            yield from self._of_status(status)
            yield from _of_plugins(plugins)
            yield from self._of_traffic()

    def describe(self) -> list[Metric]:
        """Nothing is asked when the collector is registered."""
        return []

    def _of_status(self, status: messages.Status) -> Iterator[Metric]:
        about = {"version": status.version, "host": status.host, "guard": status.guard}
        yield InfoMetricFamily("slim", "The slimd that answers.", about)
        yield GaugeMetricFamily("slim_uptime_seconds", "Of control.", status.uptime_s)
        processes = GaugeMetricFamily(
            "slim_process_up", "Whether a process of slimd runs.", labels=["role"]
        )
        for process in status.processes:
            processes.add_metric([process.role], bool(process.pid))
        yield processes
        for name in ("workloads", "containers", "listeners", "connections"):
            yield GaugeMetricFamily(f"slim_{name}", f"{name} now.", getattr(status, name))
        connected = GaugeMetricFamily(
            "slim_peer_connected", "Whether the channel to a peer is up.", labels=["peer"]
        )
        rtt = GaugeMetricFamily(
            "slim_peer_rtt_seconds", "Round trip on the channel to a peer.", labels=["peer"]
        )
        for peer in status.peers:
            name = self._peers.admit(peer.host or peer.endpoint)
            connected.add_metric([name], peer.state == "connected")
            if peer.rtt_ms:
                rtt.add_metric([name], peer.rtt_ms / 1000)
        yield connected
        yield rtt
        counted = CounterMetricFamily(
            "slim_counter", "The counters of slimctl status.", labels=["counter"]
        )
        for name, count in status.counters.items():
            # Those about one rule, event or endpoint have metrics of their own.
            if " " not in name:
                counted.add_metric([self._counters.admit(name)], count)
        yield counted

    def _add_traffic(self) -> None:
        before = dict(self._mirror.traffic)
        changes = client.ask(self._run_dir, self._mirror.request(), messages.Changes)
        self._mirror.update(changes)
        if changes.is_whole:
            # The first answer, or a slimd that began anew: what went before is not ours to count.
            return
        for traffic in changes.traffic:
            old = before.get(traffic.cookie)
            self._acked += max(0, traffic.bytes_acked - (old.bytes_acked if old else 0))
            self._received += max(0, traffic.bytes_received - (old.bytes_received if old else 0))

    def _of_traffic(self) -> Iterator[Metric]:
        yield GaugeMetricFamily(
            "slim_connections_shown",
            "Connections and listeners in the table of slimctl connections.",
            len(self._mirror.rows),
        )
        family = CounterMetricFamily(
            "slim_payload_bytes",
            "Payload of connections as seen at scrapes; what a connection moved after the last one"
            " is not in it.",
            labels=["direction"],
        )
        family.add_metric(["sent"], self._acked)
        family.add_metric(["received"], self._received)
        yield family


def _of_plugins(answer: messages.Plugins) -> Iterator[Metric]:
    labels = ["plugin", "hook"]
    calls = CounterMetricFamily("slim_plugin_calls", "Calls of hooks.", labels=labels)
    errors = CounterMetricFamily("slim_plugin_errors", "Calls that raised.", labels=labels)
    seconds = CounterMetricFamily("slim_plugin_seconds", "Time of hooks.", labels=labels)
    for plugin in answer.plugins:
        for cost in plugin.costs:
            where = [plugin.name, cost.hook]
            calls.add_metric(where, cost.calls)
            errors.add_metric(where, cost.errors)
            seconds.add_metric(where, cost.seconds)
    yield calls
    yield errors
    yield seconds
