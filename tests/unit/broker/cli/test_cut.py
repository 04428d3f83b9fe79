"""cut: what a filter means, and that exactly what was shown is cut."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from slim.broker.cli.main import slimctl
from support.fake_admin import FakeProvider, connection, listener, serving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from click.testing import Result

OUT = connection(cookie=1)
IN = connection(
    cookie=2,
    direction="in",
    workload="db",
    overlay_local="10.1.1.2:80",
    overlay_peer="10.1.0.2:40000",
    path="fallback",
)
OTHER = connection(cookie=3, overlay_local="[fd00::2]:40001", overlay_peer="[fd00:1::2]:5432")


@pytest.fixture
def provider() -> FakeProvider:
    denied = connection(cookie=5, path="denied")
    return FakeProvider(connection_rows=[OUT, IN, OTHER, denied, listener(cookie=6)])


@pytest.fixture
def run_dir(tmp_path: Path, provider: FakeProvider) -> Iterator[Path]:
    with serving(tmp_path, provider) as directory:
        yield directory


def invoke(run_dir: Path, *words: str, answer: str = "") -> Result:
    return CliRunner().invoke(slimctl, ["--run-dir", str(run_dir), "cut", *words], input=answer)


@pytest.mark.parametrize("words", [[], [""], [" ", ""], ["host:a"], ["-yes"], ["--yse", "id:1"]])
def test_without_a_sound_filter_nothing_is_cut(
    run_dir: Path, provider: FakeProvider, words: list[str]
) -> None:
    assert invoke(run_dir, *words, "--yes").exit_code == 2
    assert provider.cuts == []


def test_listeners_and_refused_attempts_are_never_meant(
    run_dir: Path, provider: FakeProvider
) -> None:
    done = invoke(run_dir, "src:0.0.0.0/0", "src:::/0", "--yes")
    assert done.exit_code == 0, done.output
    assert sorted(provider.cuts) == [1, 2, 3]


def test_a_dry_run_shows_and_cuts_nothing(run_dir: Path, provider: FakeProvider) -> None:
    done = invoke(run_dir, "id:1", "--dry-run")
    assert done.exit_code == 0
    assert OUT.overlay_peer in done.output
    assert provider.cuts == []


@pytest.mark.parametrize(("answer", "cut"), [("y\n", [1]), ("n\n", []), ("", [])])
def test_it_asks_first(run_dir: Path, provider: FakeProvider, answer: str, cut: list[int]) -> None:
    done = invoke(run_dir, "id:1", answer=answer)
    assert "End these 1 connections?" in done.output
    assert (done.exit_code == 0) == bool(cut)
    assert provider.cuts == cut


def test_what_ended_meanwhile_is_told_apart(run_dir: Path, provider: FakeProvider) -> None:
    provider.gone = [3]
    done = invoke(run_dir, "workload:web", "--yes")
    assert done.output.splitlines()[-1] == "1 cut, 1 had ended by themselves"


def test_nothing_matches(run_dir: Path, provider: FakeProvider) -> None:
    done = invoke(run_dir, "id:99")
    assert (done.exit_code, done.output) == (0, "no connection matches\n")


def test_a_negated_term_spares(run_dir: Path, provider: FakeProvider) -> None:
    done = invoke(run_dir, "dst:0.0.0.0/0", "dst:::/0", "-path:fallback", "--yes")
    assert done.exit_code == 0, done.output
    assert sorted(provider.cuts) == [1, 3]
