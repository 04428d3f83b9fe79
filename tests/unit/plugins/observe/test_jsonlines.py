"""The plugin that writes events to a file."""

from __future__ import annotations

import json
import queue
import stat
import threading
from typing import TYPE_CHECKING, Any

import pytest

from slim.broker.errors import ConfigError
from slim.broker.events import EventsLost
from slim.broker.plugin_settings import PluginSettings
from slim.plugins.observe import jsonlines
from slim.plugins.observe.jsonlines import Plugin
from support.happenings import ONE_OF_EACH, opened
from support.polling import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "events.jsonl"


@pytest.fixture
def plugins() -> Iterator[list[Plugin]]:
    made: list[Plugin] = []
    yield made
    for plugin in made:
        plugin.slim_stop()


def make(plugins: list[Plugin], **table: Any) -> Plugin:
    plugin = Plugin()
    plugins.append(plugin)
    plugin.slim_configure(PluginSettings("a", "slimd.toml", {"jsonlines": table}))
    return plugin


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_every_event_is_a_line(file: Path, plugins: list[Plugin]) -> None:
    plugin = make(plugins, path=str(file))
    for event in ONE_OF_EACH:
        plugin.slim_observe(event)
    plugin.slim_stop()
    found = lines(file)
    assert len(found) == len(ONE_OF_EACH)
    assert found[0]["event"] == "connection-opened"
    assert found[0]["overlay_peer"] == "10.1.1.2:80"
    assert stat.S_IMODE(file.stat().st_mode) & ~jsonlines.FILE_MODE == 0


def test_without_a_path_nothing_is_written_and_nothing_runs(
    tmp_path: Path, plugins: list[Plugin]
) -> None:
    plugin = make(plugins)
    plugin.slim_observe(opened())
    assert plugin._writer is None
    assert [*tmp_path.iterdir()] == []


def test_only_the_kinds_that_are_asked_for(file: Path, plugins: list[Plugin]) -> None:
    plugin = make(plugins, path=str(file), events=["path-failed", "peer-connected"])
    for event in ONE_OF_EACH:
        plugin.slim_observe(event)
    plugin.slim_stop()
    assert [line["event"] for line in lines(file)] == ["peer-connected", "path-failed"]


@pytest.mark.parametrize("keep", [0, 2])
def test_a_full_file_makes_room_and_so_many_older_ones_stay(
    file: Path, plugins: list[Plugin], keep: int
) -> None:
    plugin = make(plugins, path=str(file), max_size="4096B", keep=keep)
    for number in range(100):
        plugin.slim_observe(opened(cookie=number))
    plugin.slim_stop()
    files = sorted(path.name for path in file.parent.iterdir())
    assert files == ["events.jsonl", "events.jsonl.1", "events.jsonl.2"][: keep + 1]
    for path in file.parent.iterdir():
        assert path.stat().st_size <= 4096
    in_order = [line["cookie"] for name in reversed(files) for line in lines(file.parent / name)]
    assert in_order == [*range(100)][-len(in_order) :]


def test_a_file_that_is_there_is_continued(file: Path, plugins: list[Plugin]) -> None:
    file.write_text('{"event": "before"}\n')
    plugin = make(plugins, path=str(file))
    plugin.slim_observe(opened())
    plugin.slim_stop()
    assert [line["event"] for line in lines(file)] == ["before", "connection-opened"]


def test_what_a_full_queue_does_not_take_is_counted_in_its_place(
    file: Path, plugins: list[Plugin]
) -> None:
    plugin = make(plugins, path=str(file))
    plugin._queue = queue.Queue(2)
    # Nobody takes anything out of it yet.
    plugin._writer = never = threading.Thread(target=lambda: None)
    never.start()
    never.join()
    for number in range(10):
        plugin.slim_observe(opened(cookie=number))
    assert plugin.lost == 8
    plugin._queue.get()
    plugin._queue.get()
    plugin.slim_observe(opened(cookie=10))
    lost, event = plugin._queue.get(), plugin._queue.get()
    assert isinstance(lost, EventsLost)
    assert lost.count == 8
    assert event == opened(cookie=10)


def test_what_could_not_be_written_is_told_once_and_counted(
    file: Path, plugins: list[Plugin], caplog: pytest.LogCaptureFixture
) -> None:
    plugin = make(plugins, path=str(file))
    file.mkdir()
    for _ in range(3):
        plugin.slim_observe(opened())
    eventually(lambda: plugin._queue.unfinished_tasks == 0, "all three were tried")
    assert len([r for r in caplog.records if "events are not written" in r.message]) == 1
    file.rmdir()
    plugin.slim_observe(opened())
    plugin.slim_stop()
    assert [(line["event"], line.get("count")) for line in lines(file)] == [
        ("events-lost", 3),
        ("connection-opened", None),
    ]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"path": "events.jsonl"}, "no absolute path"),
        ({"path": "/nowhere/at/all/events.jsonl"}, "there is no directory"),
        ({"path": "/dev/null"}, "is no file"),
        ({"max_size": "10 potatoes"}, "max_size"),
        ({"max_size": "1B"}, "less than 4096 bytes"),
        ({"keep": -1}, "keep"),
        ({"events": ["connection-open"]}, "there is no event 'connection-open'"),
        ({"file": "/tmp/x"}, "file"),
    ],
)
def test_a_mistake_in_the_table_is_named(
    plugins: list[Plugin], table: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        make(plugins, **table)
