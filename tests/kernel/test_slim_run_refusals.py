"""When slim-run must not start the command: its reasons, and that nothing is left behind."""

from __future__ import annotations

import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from support.fake_slimd import Behaviour, FakeSlimd
from support.launching import ENTRY, Launcher

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.needs_root


@pytest.fixture
def launcher(tmp_path: Path) -> Launcher:
    """slim-run for a run directory of its own; scope: test."""
    return Launcher(tmp_path)


@pytest.fixture
def slimd(tmp_path: Path) -> Iterator[FakeSlimd]:
    """A fake slimd that acknowledges; scope: test. Shares the directory with `launcher`."""
    with FakeSlimd(tmp_path) as fake:
        yield fake


def test_an_overlay_that_slimd_does_not_know_starts_nothing(
    slimd: FakeSlimd, launcher: Launcher
) -> None:
    done = launcher.run("--overlay", "blue", "--", "echo", "ran")
    assert (done.returncode, done.stdout) == (5, "")
    assert done.stderr.splitlines() == [
        "slim-run: slimd refuses: no overlay blue",
        "slim-run: hint: see slimctl overlays",
    ]


@pytest.mark.parametrize(
    ("netns", "complaint"),
    [
        ("no-such-name-here", "/run/netns/no-such-name-here: No such file"),
        ("/proc/self/ns/mnt", "not a network namespace"),
        ("/nowhere/at/all", "No such file"),
        ("4194305", "/proc/4194305/ns/net: No such file"),
        ("..", "not the name"),
    ],
)
def test_a_wrong_namespace_starts_nothing(
    slimd: FakeSlimd, launcher: Launcher, netns: str, complaint: str
) -> None:
    done = launcher.run("--netns", netns, "--", "echo", "ran")
    assert (done.returncode, done.stdout) == (1, "")
    assert complaint in done.stderr
    assert slimd.registrations == []


@pytest.mark.parametrize(
    ("name", "status", "complaint"),
    [
        ("no-such-command-here", 127, "not found"),
        ("/no/such/file", 127, "not found"),
        ("", 127, "not found"),
        ("/etc/passwd", 126, "Permission denied"),
        ("/", 126, "Permission denied"),
        ("{tmp}/no-interpreter", 127, "interpreter"),
        ("{tmp}/text", 126, "#!"),
    ],
)
def test_a_command_that_cannot_be_run_gives_the_shells_status(
    slimd: FakeSlimd, launcher: Launcher, tmp_path: Path, name: str, status: int, complaint: str
) -> None:
    for file, text in (("no-interpreter", "#!/no/such/interpreter\n"), ("text", "true\n")):
        (tmp_path / file).write_text(text)
        (tmp_path / file).chmod(0o755)
    done = launcher.run("--", name.format(tmp=tmp_path))
    assert done.returncode == status
    assert complaint in done.stderr
    assert "Traceback" not in done.stderr
    slimd.supervisors[0].wait_for_end()


def test_without_slimd_the_command_does_not_start(launcher: Launcher) -> None:
    done = launcher.run("--", "echo", "ran")
    assert (done.returncode, done.stdout) == (5, "")
    message, hint = done.stderr.splitlines()
    assert message.startswith(f"slim-run: cannot reach slimd at {launcher.run_dir}/run.sock")
    assert "--fail-open" in hint


def test_fail_open_also_covers_a_slimd_of_another_version(
    tmp_path: Path, launcher: Launcher
) -> None:
    with FakeSlimd(tmp_path, protocol=99):
        done = launcher.run("--fail-open", "--", "echo", "ran")
    assert done.stdout == "ran\n"
    assert "version 99" in done.stderr


def test_fail_open_cannot_make_a_namespace(launcher: Launcher) -> None:
    done = launcher.run("--fail-open", "--overlay", "blue", "--", "echo", "ran")
    assert (done.returncode, done.stdout) == (5, "")
    assert "--netns" in done.stderr


@pytest.mark.parametrize("mode", ["--fail-open", "--fail-closed"])
@pytest.mark.parametrize(
    ("behaviour", "complaint"),
    [("refuse", "the host's own namespace"), ("hang up", "slimd closed the connection")],
)
def test_no_command_runs_under_a_filter_that_nobody_supervises(
    tmp_path: Path, launcher: Launcher, behaviour: Behaviour, complaint: str, mode: str
) -> None:
    with FakeSlimd(tmp_path, behaviour) as fake:
        done = launcher.run(mode, "--", "echo", "ran")
        assert fake.registered.wait(10)
    assert (done.returncode, done.stdout) == (5, "")
    assert complaint in done.stderr
    assert "Traceback" not in done.stderr


def test_a_slimd_that_stays_silent_is_given_up(tmp_path: Path) -> None:
    limited = f"from slim.broker.run import session; session.ANSWER_LIMIT_S = 1; {ENTRY}"
    argv = [sys.executable, "-c", limited, "--run-dir", str(tmp_path), "--", "echo", "ran"]
    with FakeSlimd(tmp_path, "stay silent") as fake:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=30)
        fake.supervisors[0].wait_for_end()
    assert (done.returncode, done.stdout) == (5, "")
    assert "no answer within 1 s" in done.stderr


def test_an_interrupt_while_waiting_ends_it_silently_with_its_filter(
    tmp_path: Path, launcher: Launcher
) -> None:
    with FakeSlimd(tmp_path, "stay silent") as fake:
        process = launcher.start("--", "echo", "ran")
        assert fake.registered.wait(10)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=10)
        fake.supervisors[0].wait_for_end()
    assert (process.returncode, out, err) == (-signal.SIGINT, "", "")


def test_slim_run_under_slim_run_names_the_cause(slimd: FakeSlimd, launcher: Launcher) -> None:
    done = launcher.run("--", *launcher.argv("--", "echo", "ran"))
    assert (done.returncode, done.stdout) == (1, "")
    assert "another seccomp agent" in done.stderr
    assert "slim-run under another slim-run" in done.stderr
    assert len(slimd.registrations) == 1
