"""cut: what a filter means, and that exactly what was shown is cut."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
import pytest
from click.testing import CliRunner

from slim.broker.cli.cut import parse_filter
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
UNKNOWN = connection(cookie=4, overlay_local="", overlay_peer="10.1.1.9:80")


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


@pytest.mark.parametrize(
    ("terms", "cookies"),
    [
        (["workload:web"], {1, 3, 4}),
        (["workload:web", "workload:db"], {1, 2, 3, 4}),
        (["src:10.1.0.2"], {1, 2}),
        (["dst:10.1.1.0/24"], {1, 2, 4}),
        (["dst:fd00:1::/32"], {3}),
        (["port:80", "src:10.1.0.0/24"], {1, 2}),
        (["port:5432", "workload:db"], set()),
        (["path:fallback"], {2}),
        (["id:3"], {3}),
    ],
)
def test_different_terms_must_all_hold_and_equal_ones_any(
    terms: list[str], cookies: set[int]
) -> None:
    matches = parse_filter(tuple(terms))
    assert {row.cookie for row in (OUT, IN, OTHER, UNKNOWN) if matches(row)} == cookies


@pytest.mark.parametrize(
    "term", ["web", "host:a", "port:http", "src:10.1", "src:", "path:denied", "id:-1", "workload:"]
)
def test_a_term_that_says_nothing_is_named(term: str) -> None:
    with pytest.raises(click.BadParameter, match=term):
        parse_filter((term,))


def test_without_a_filter_nothing_is_cut(run_dir: Path, provider: FakeProvider) -> None:
    assert invoke(run_dir).exit_code == 2
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
