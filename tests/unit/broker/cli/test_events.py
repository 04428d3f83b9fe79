"""`slimctl events`, before a slimd whose events are made up."""

from __future__ import annotations

import csv
import io
import json
import re
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import msgspec
import pytest

from slim.broker import observing
from slim.broker.admin import messages
from slim.broker.cli import events as command
from slim.broker.events import kind_of
from support.fake_admin import FakeProvider, serving
from support.happenings import ONE_OF_EACH, opened
from support.terminal import slimctl

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def provider() -> FakeProvider:
    made = FakeProvider()
    for event in ONE_OF_EACH:
        made.observing.publish(event)
    return made


@pytest.fixture
def run_dir(tmp_path: Path, provider: FakeProvider) -> Iterator[Path]:
    with serving(tmp_path, provider) as directory:
        yield directory


def test_json_has_every_event_and_the_version(run_dir: Path) -> None:
    done = slimctl("--run-dir", run_dir, "events", "-o", "json")
    assert json.loads(done.stdout) == {
        "version": 1,
        "events": [json.loads(msgspec.json.encode(event)) for event in ONE_OF_EACH],
    }


def test_jsonl_has_one_event_a_line(run_dir: Path) -> None:
    done = slimctl("--run-dir", run_dir, "events", "-o", "jsonl")
    found = [json.loads(line)["event"] for line in done.stdout.splitlines()]
    assert found == [kind_of(event) for event in ONE_OF_EACH]


def test_csv_has_a_column_for_every_field_of_every_kind(run_dir: Path) -> None:
    done = slimctl("--run-dir", run_dir, "events", "-o", "csv")
    rows = [*csv.DictReader(io.StringIO(done.stdout))]
    assert len(rows) == len(ONE_OF_EACH)
    for row, event in zip(rows, ONE_OF_EACH, strict=True):
        assert row["event"] == kind_of(event)
        for field in event.__struct_fields__:
            assert row[field] == str(getattr(event, field))


def test_a_table_has_time_kind_and_words(run_dir: Path) -> None:
    done = slimctl("--run-dir", run_dir, "events", "event:path-failed")
    title, line = done.stdout.splitlines()
    assert title.split() == ["TIME", "EVENT", "WHAT"]
    assert re.fullmatch(
        r"\d\d:\d\d:49\.000  path-failed  host path to 192\.0\.2\.2:20001 failed: timed out", line
    )


def test_filter_and_last_hold_together(run_dir: Path) -> None:
    done = slimctl("--run-dir", run_dir, "events", "event:peer-*", "--last", "2", "-o", "jsonl")
    found = [json.loads(line)["event"] for line in done.stdout.splitlines()]
    assert found == ["peer-disconnected", "peer-failed"]


def test_a_filter_that_leaves_nothing_says_how_many_there_are(run_dir: Path) -> None:
    done = slimctl("--run-dir", run_dir, "events", "workload:nobody")
    assert done.stdout == f"none of {len(ONE_OF_EACH)} matches\n"


def test_a_wrong_filter_is_a_mistake_on_the_command_line(run_dir: Path) -> None:
    done = slimctl("--run-dir", run_dir, "events", "event:nothing")
    assert (done.returncode, done.stdout) == (2, "")
    assert "the kinds are" in done.stderr


def test_following_takes_no_form_that_has_an_end(run_dir: Path) -> None:
    done = slimctl("--run-dir", run_dir, "events", "--follow", "--json")
    assert done.returncode == 2
    assert "--follow goes with -o jsonl" in done.stderr


def test_following_goes_on_until_it_is_interrupted(run_dir: Path, provider: FakeProvider) -> None:
    words = [sys.executable, "-m", "slim.broker.cli.main", "--run-dir", str(run_dir), "events"]
    words += ["--follow", "--last", "1", "-o", "jsonl", "event:connection-opened"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as following:
        assert following.stdout is not None
        assert json.loads(following.stdout.readline())["cookie"] == 7
        for number in (71, 72):
            provider.observing.publish(opened(cookie=number))
            assert json.loads(following.stdout.readline())["cookie"] == number
        following.send_signal(signal.SIGINT)
        assert following.wait(10) == 130


def test_pages_are_put_together_and_what_was_lost_between_them_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(messages, "MAX_EVENTS", 1000)
    monkeypatch.setattr(observing, "PER_SECOND", 10_000)
    provider = FakeProvider()
    for number in range(1500):
        provider.observing.publish(opened(cookie=number))
    provider.observing.lose(3)
    provider.observing.publish(opened(cookie=1500))
    with serving(tmp_path, provider):
        past, last = command.fetch_past(tmp_path)
    assert last == 1504
    assert len([event for event in past if kind_of(event) == "connection-opened"]) == 1501
    assert [event.count for event in past if kind_of(event) == "events-lost"] == [3]  # type: ignore[union-attr]
