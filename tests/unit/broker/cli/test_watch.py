"""`--watch` of every listing, and what connections add to it."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from slim.broker.admin.messages import Changes, Traffic
from support.fake_admin import FakeProvider, connection, serving
from support.terminal import slimctl

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def provider() -> FakeProvider:
    return FakeProvider()


@pytest.fixture
def run_dir(tmp_path: Path, provider: FakeProvider) -> Iterator[Path]:
    with serving(tmp_path, provider) as directory:
        yield directory


def watch(run_dir: Path, lines: int, *words: str) -> list[str]:
    """The first so many lines; then it is interrupted, and must end by that."""
    argv = [sys.executable, "-m", "slim.broker.cli.main", "--run-dir", str(run_dir), *words]
    with subprocess.Popen(
        [*argv, "--watch", "--every", "0.1"], stdout=subprocess.PIPE, text=True
    ) as watching:
        assert watching.stdout is not None
        found = [watching.stdout.readline().rstrip("\n") for _ in range(lines)]
        watching.send_signal(signal.SIGINT)
        assert watching.wait(10) == 130
    return found


@pytest.mark.parametrize("command", ["ps", "plugins"])
def test_a_listing_comes_again_and_again(run_dir: Path, command: str) -> None:
    first = watch(run_dir, 4, command)
    assert first[:2] == first[2:]


def test_status_comes_again_and_again(run_dir: Path) -> None:
    assert sum(line.startswith("slimd:") for line in watch(run_dir, 30, "status")) >= 2


def test_connections_are_asked_for_by_changes_and_have_rates(
    run_dir: Path, provider: FakeProvider
) -> None:
    row = connection(cookie=7)
    provider.changes_answers = [
        Changes(5, True, 10.0, [row], [], [Traffic(7, 150, 1, 1000, 50, 0)]),
        *(
            Changes(5 + n, False, 10.0 + n, [], [], [Traffic(7, 150, 1, 1000 + 2000 * n, 50, 0)])
            for n in range(1, 500)
        ),
    ]
    title, first, _, second, *_ = watch(run_dir, 6, "connections")
    assert re.split(r"\s{2,}", title)[-2:] == ["SEND/S", "RECV/S"]
    assert first.split()[-2:] == ["0", "0"]
    assert second.split()[-2:] == ["2.0k", "0"]
    assert provider.asked_after[:3] == [0, 5, 6]


def test_json_lines_are_whole_rows(run_dir: Path, provider: FakeProvider) -> None:
    provider.changes_answers = [
        Changes(5 + n, not n, 10.0 + n, [] if n else [connection()], [], []) for n in range(500)
    ]
    for line in watch(run_dir, 3, "connections", "-o", "jsonl"):
        assert json.loads(line)["overlay_peer"] == "10.1.1.2:80"


@pytest.mark.parametrize("command", ["ps", "connections", "listeners", "plugins", "status"])
def test_watching_takes_no_form_that_has_an_end(run_dir: Path, command: str) -> None:
    done = slimctl("--run-dir", run_dir, command, "--watch", "--json")
    assert done.returncode == 2
    assert "--watch goes with -o jsonl" in done.stderr
