"""reload: what slimd says of it, and the exit status."""

from __future__ import annotations

from typing import TYPE_CHECKING

from click.testing import CliRunner

from slim.broker.admin import messages
from slim.broker.cli.main import slimctl
from support.fake_admin import FakeProvider, serving

if TYPE_CHECKING:
    from pathlib import Path

    from click.testing import Result


def reload(run_dir: Path, answer: messages.Reloaded) -> Result:
    with serving(run_dir, FakeProvider(reloaded=answer)):
        return CliRunner().invoke(slimctl, ["--run-dir", str(run_dir), "reload"])


def test_done(tmp_path: Path) -> None:
    done = reload(tmp_path, messages.Reloaded([], []))
    assert (done.exit_code, done.output) == (0, "reloaded\n")


def test_what_needs_a_restart_is_named(tmp_path: Path) -> None:
    done = reload(tmp_path, messages.Reloaded([], ["[host] ports", "run_dir"]))
    assert done.exit_code == 0
    assert done.output.splitlines() == [
        "[host] ports changed: restart slimd to put it in force",
        "run_dir changed: restart slimd to put it in force",
        "reloaded",
    ]


def test_every_mistake_is_shown_with_its_hint(tmp_path: Path) -> None:
    mistakes = [messages.Mistake("slimd.toml: no\x1b", "yes"), messages.Mistake("host.crt: bad")]
    done = reload(tmp_path, messages.Reloaded(mistakes, []))
    assert done.exit_code == 2
    assert done.output.splitlines() == [
        "slimctl: slimd.toml: no\\x1b",
        "  hint: yes",
        "slimctl: host.crt: bad",
        "not reloaded: the running configuration stays in force",
    ]
