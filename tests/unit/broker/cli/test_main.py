"""slimctl itself: help, errors as text, exit codes, and what it does not load."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import click
import pytest

from slim.broker.cli import main
from slim.broker.errors import ConfigError, SlimError, SyscallError
from support.fake_admin import FakeProvider, serving
from support.terminal import slimctl

if TYPE_CHECKING:
    from pathlib import Path

    from slim.broker.admin import messages

COMMANDS = (
    "completion",
    "connections",
    "cut",
    "doctor",
    "events",
    "explain",
    "listeners",
    "metrics",
    "oci",
    "overlay",
    "pki",
    "plugins",
    "policy",
    "ps",
    "reload",
    "status",
    "stop",
)
HEAVY = ("asyncio", "cryptography", "msgspec", "pluggy", "pyroute2", "pyseccomp", "rich")


def fail_with(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*arguments: object) -> messages.Status:
        raise error

    monkeypatch.setattr("slim.broker.admin.client.ask", fail)


def loaded_by(*words: str) -> set[str]:
    script = (
        "import sys; from slim.broker.cli.main import slimctl\n"
        f"try: slimctl.main({list(words)!r})\n"
        "except SystemExit: pass\n"
        f"print('loaded', *({HEAVY!r} & sys.modules.keys()))"
    ).replace(repr(HEAVY), repr(set(HEAVY)))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split()[1:])


def test_help_lists_every_command() -> None:
    done = slimctl("--help")
    assert done.returncode == 0
    listed = {line.split()[0] for line in done.stdout.partition("Commands:")[2].splitlines()[1:]}
    assert listed == set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_that_begins_as_the_list_says(command: str) -> None:
    found = main.slimctl.get_command(click.Context(main.slimctl), command)
    assert found is not None
    assert found.name == command
    assert found.help
    done = slimctl(command, "--help")
    assert done.returncode == 0, done.stderr


def test_help_loads_nothing_that_takes_time() -> None:
    assert loaded_by("--help") == set()


def test_a_listing_in_a_pipe_loads_no_rich(tmp_path: Path) -> None:
    with serving(tmp_path, FakeProvider()):
        assert loaded_by("--run-dir", str(tmp_path), "ps") == {"msgspec"}


def test_version_is_printed() -> None:
    done = slimctl("--version")
    assert (done.returncode, done.stdout.startswith("slimctl, version ")) == (0, True)


@pytest.mark.parametrize(
    "words",
    [
        ["nonsense"],
        ["ps", "--nonsense"],
        ["connections", "--path", "slow"],
        ["status", "x"],
        ["ps", "x:y"],
    ],
)
def test_a_mistake_on_the_command_line_exits_with_2(words: list[str]) -> None:
    done = slimctl(*words)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "Error: " in done.stderr


def test_without_slimd_one_line_and_a_hint_and_exit_status_5(tmp_path: Path) -> None:
    done = slimctl("--run-dir", tmp_path, "status")
    assert (done.returncode, done.stdout) == (5, "")
    message, hint = done.stderr.splitlines()
    assert message == f"slimctl: no slimd answers at {tmp_path}/admin.sock"
    assert hint.startswith("  hint: start it")


def test_the_run_dir_may_come_from_the_environment(tmp_path: Path) -> None:
    done = slimctl("status", SLIM_RUN_DIR=str(tmp_path))
    assert f"{tmp_path}/admin.sock" in done.stderr


def test_the_option_outweighs_the_environment(tmp_path: Path) -> None:
    done = slimctl("--run-dir", tmp_path / "here", "status", SLIM_RUN_DIR=str(tmp_path))
    assert f"{tmp_path}/here/admin.sock" in done.stderr


def test_an_empty_environment_variable_is_none() -> None:
    assert "/run/slim/admin.sock" in slimctl("status", SLIM_RUN_DIR="").stderr


@pytest.mark.parametrize(
    ("error", "status", "lines"),
    [
        (ConfigError("bad", hint="good"), 2, ["slimctl: bad", "  hint: good"]),
        (SlimError("bad"), 1, ["slimctl: bad"]),
        (PermissionError(13, "Permission denied", "/x"), 1, ["slimctl: /x: Permission denied"]),
        (
            SyscallError("setns", 1, "namespace x"),
            1,
            ["slimctl: setns: Operation not permitted (EPERM): namespace x"],
        ),
    ],
)
def test_errors_become_text_in_one_place(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
    status: int,
    lines: list[str],
) -> None:
    fail_with(monkeypatch, error)
    with pytest.raises(SystemExit) as caught:
        main.main(["status"])
    assert caught.value.code == status
    assert capsys.readouterr().err.splitlines() == lines


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    fail_with(monkeypatch, ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        main.main(["status"])


def test_a_reader_that_left_is_no_traceback(tmp_path: Path) -> None:
    provider = FakeProvider()
    provider.connection_rows *= 5000
    with serving(tmp_path, provider):
        script = f"{sys.executable} -m slim.broker.cli.main --run-dir {tmp_path} connections"
        done = subprocess.run(
            ["sh", "-c", f"{script} | head -n 1"], capture_output=True, text=True, timeout=30
        )
    assert done.stdout.startswith("DIR")
    assert done.stderr == ""
