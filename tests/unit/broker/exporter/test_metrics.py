"""slimctl metrics: what a scrape says, and what it costs to have many names."""

from __future__ import annotations

import re
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml
from click.testing import CliRunner
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from slim.broker.admin import messages
from slim.broker.cli.main import slimctl
from slim.broker.endpoints import Endpoint
from slim.broker.errors import ConfigError
from slim.broker.events import ConnectionsCut, EventsLost, WouldDeny
from slim.broker.exporter.names import OTHER, LabelValues
from slim.broker.exporter.serving import open_server
from slim.broker.exporter.snapshot import Snapshot
from slim.broker.exporter.tally import EventTally
from support.fake_admin import FakeProvider, connection, serving
from support.happenings import opened

if TYPE_CHECKING:
    from slim.broker.events import Event

ALERTS = Path(__file__).resolve().parents[4] / "contrib/metrics/alerts.yml"


def samples(registry: CollectorRegistry) -> dict[tuple[str, ...], float]:
    """Name and label values -> value."""
    text = generate_latest(registry).decode()
    return {
        (sample.name, *(sample.labels[key] for key in sorted(sample.labels))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def tallied(*events: Event) -> dict[tuple[str, ...], float]:
    registry = CollectorRegistry()
    EventTally(registry).add(events)
    return samples(registry)


def test_events_are_counted_by_what_they_say() -> None:
    found = tallied(
        opened(),
        opened(setup_us=0),
        opened(path="fallback", reason="not-brokered"),
        opened(path="denied", verdict="deny", rule="rules:no"),
        ConnectionsCut(why="policy", rule="rules:no", count=12),
        WouldDeny(flow="a to b", rule="rules:maybe"),
        EventsLost(count=3),
    )
    assert found["slim_connections_opened_total", "out", "fast", "allow"] == 2
    assert found["slim_setup_seconds_count", "out", "fast"] == 1
    assert found["slim_setup_seconds_sum", "out", "fast"] == pytest.approx(180e-6)
    assert found["slim_fallbacks_total", "not-brokered"] == 1
    assert found["slim_verdicts_total", "rules:no", "deny"] == 1
    assert found["slim_connections_cut_total", "policy"] == 12
    assert found["slim_would_deny_total", "rules:maybe"] == 1
    assert found["slim_events_lost_total",] == 3
    assert found["slim_events_total", "connection-opened"] == 4


def test_rules_beyond_a_number_are_others() -> None:
    values = LabelValues(most=2)
    assert [values.admit(name) for name in ("a", "b", "c", "a")] == ["a", "b", OTHER, "a"]
    assert LabelValues().admit("x\x1b" + "y" * 1000) == "x?" + "y" * 118


def test_a_scrape_says_what_slimd_is_like(tmp_path: Path) -> None:
    row = connection(cookie=7)
    traffic = [messages.Traffic(7, 100, 0, sent, 2 * sent, 0) for sent in (1000, 1500, 1500)]
    provider = FakeProvider()
    provider.changes_answers = [
        messages.Changes(5 + n, not n, 10.0 + n, [] if n else [row], [], [traffic[n]])
        for n in range(3)
    ]
    registry = CollectorRegistry()
    registry.register(Snapshot(tmp_path))
    with serving(tmp_path, provider):
        first, second = samples(registry), samples(registry)
    assert first["slim_up",] == 1
    assert first["slim_info", "portable", "a", "1.2.3"] == 1
    assert (first["slim_containers",], first["slim_connections",]) == (2, 4)
    assert first["slim_process_up", "traps"] == 0
    assert first["slim_peer_connected", "b"] == 1
    assert first["slim_peer_rtt_seconds", "b"] == pytest.approx(0.00042)
    assert first["slim_counter_total", "lookups"] == 17
    assert first["slim_plugin_calls_total", "decide", "rules"] == 2000
    assert first["slim_payload_bytes_total", "sent"] == 0
    assert second["slim_payload_bytes_total", "sent"] == 500
    assert second["slim_payload_bytes_total", "received"] == 1000


def test_without_slimd_a_scrape_says_that(tmp_path: Path) -> None:
    said = CliRunner().invoke(slimctl, ["--run-dir", str(tmp_path), "metrics"])
    assert said.exit_code == 0
    assert "slim_up 0.0" in said.output


def test_where_it_cannot_listen_is_told(tmp_path: Path) -> None:
    registry = CollectorRegistry()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        where = Endpoint.parse(f"127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(ConfigError, match="Address already in use"):
            open_server(where, registry)
    file = tmp_path / "file"
    file.write_text("kept")
    with pytest.raises(ConfigError, match="Address already in use"):
        open_server(str(file), registry)
    assert file.read_text() == "kept"


def test_a_socket_that_was_left_behind_is_replaced_and_one_in_use_is_not(tmp_path: Path) -> None:
    path = tmp_path / "metrics.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    with open_server(str(path), CollectorRegistry()):
        assert path.stat().st_mode & 0o777 == 0o660
        with pytest.raises(ConfigError, match="Address already in use"):
            open_server(str(path), CollectorRegistry())


@pytest.mark.parametrize("where", ["nowhere", "127.0.0.1", "127.0.0.1:x", "metrics.sock"])
def test_an_endpoint_that_is_none_is_refused(tmp_path: Path, where: str) -> None:
    said = CliRunner().invoke(slimctl, ["--run-dir", str(tmp_path), "metrics", "--listen", where])
    assert said.exit_code == 2
    assert "a path from / on" in said.output


def test_alerts_name_metrics_that_there_are(tmp_path: Path) -> None:
    registry = CollectorRegistry()
    registry.register(Snapshot(tmp_path))
    EventTally(registry).add([opened(path="fallback", reason="no-key"), EventsLost(count=1)])
    provider = FakeProvider(changes_answers=[messages.Changes(5, True, 10.0, [], [], [])])
    with serving(tmp_path, provider):
        there = {name for name, *_ in samples(registry)}
    groups = yaml.safe_load(ALERTS.read_text())["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert len(rules) >= 5
    for rule in rules:
        named = set(re.findall(r"\bslim_\w+", rule["expr"]))
        assert named
        assert named <= there, rule["alert"]
        assert rule["annotations"]["summary"]
