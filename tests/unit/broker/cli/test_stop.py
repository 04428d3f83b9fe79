"""stop: asks, and waits until slimd is really gone."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from slim.broker.cli import stop
from slim.broker.cli.main import slimctl
from slim.broker.errors import ControlError
from support.fake_admin import FakeProvider, serving
from support.polling import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    """Something that runs until its input ends, in slimd's place."""
    script = [sys.executable, "-c", "import sys; sys.stdin.read()"]
    with subprocess.Popen(script, stdin=subprocess.PIPE) as running:
        yield running
        running.kill()


@pytest.mark.parametrize(
    ("words", "release", "text"), [([], False, "ended\n"), (["--release"], True, "released")]
)
def test_stop_says_what_has_ended(
    tmp_path: Path,
    process: subprocess.Popen[bytes],
    words: list[str],
    release: bool,
    text: str,
) -> None:
    process.kill()
    process.wait()
    provider = FakeProvider(pid=process.pid)
    with serving(tmp_path, provider):
        done = CliRunner().invoke(slimctl, ["--run-dir", str(tmp_path), "stop", *words])
    assert done.exit_code == 0, done.output
    assert f"slimd (pid {process.pid}) ended" in done.output
    assert text in done.output
    assert provider.stops == [release]


def test_a_slimd_that_nobody_has_collected_yet_has_ended(
    tmp_path: Path, process: subprocess.Popen[bytes]
) -> None:
    process.kill()
    eventually(lambda: not stop._runs(process.pid), "a zombie counts as ended")
    assert process.returncode is None
    with serving(tmp_path, FakeProvider(pid=process.pid)):
        done = CliRunner().invoke(slimctl, ["--run-dir", str(tmp_path), "stop"])
    assert done.exit_code == 0, done.output


def test_a_slimd_that_stays_is_an_error_with_its_pid(
    tmp_path: Path, process: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stop, "LIMIT_S", 0.05)
    with serving(tmp_path, FakeProvider(pid=process.pid)):
        done = CliRunner().invoke(slimctl, ["--run-dir", str(tmp_path), "stop"])
    assert isinstance(done.exception, ControlError)
    assert f"pid {process.pid}" in done.exception.message
    assert f"kill -TERM {process.pid}" in done.exception.hint
