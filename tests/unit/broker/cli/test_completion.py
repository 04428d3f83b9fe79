"""`slimctl completion`: what is printed works in bash, and the command answers every shell."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from slim.broker.cli.main import slimctl

SLIMCTL = Path(sys.executable).with_name("slimctl")


def printed(shell: str) -> str:
    result = CliRunner().invoke(slimctl, ["completion", shell])
    assert result.exit_code == 0
    return result.output


def in_bash(*words: str) -> set[str]:
    """What bash offers for the last of `words`, after it has read what slimctl prints."""
    script = (
        f"{printed('bash')}\n"
        'COMP_WORDS=("$@"); COMP_CWORD=$((${#COMP_WORDS[@]} - 1))\n'
        # complete() sets options of a completion that runs; here the function runs alone.
        'compopt() { printf "compopt %s %s\\n" "$@"; }\n'
        f'_slimctl_completion {SLIMCTL}; printf "%s\\n" "${{COMPREPLY[@]}}"\n'
    )
    answer = subprocess.run(
        ["bash", "--norc", "-c", script, "bash", "slimctl", *words],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert answer.stderr == ""
    return set(answer.stdout.split("\n")) - {""}


def test_bash_completes_commands() -> None:
    assert in_bash("") == set(slimctl.list_commands(click.Context(slimctl)))
    assert in_bash("co") == {"completion", "connections"}


def test_bash_completes_what_is_under_a_command() -> None:
    assert {"lint", "apply", "diff"} <= in_bash("policy", "")
    assert in_bash("connections", "--wat") == {"--watch"}
    assert in_bash("completion", "") == {"bash", "zsh", "fish"}


def test_bash_completes_files_where_an_option_takes_one() -> None:
    assert in_bash("doctor", "--config", "") == {"compopt -o default"}


@pytest.mark.parametrize(
    ("shell", "position", "answer"),
    [
        ("zsh", "1", "plain\nlisteners\nList listeners.\n"),
        ("fish", "liste", "plain,listeners\tList listeners.\n"),
    ],
)
def test_other_shells_are_answered(shell: str, position: str, answer: str) -> None:
    assert f"_SLIMCTL_COMPLETE={shell}_complete" in printed(shell)
    said = subprocess.run(
        [SLIMCTL],
        env={
            **os.environ,
            "_SLIMCTL_COMPLETE": f"{shell}_complete",
            "COMP_WORDS": "slimctl liste",
            "COMP_CWORD": position,
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert said.stdout == answer


def test_another_shell_is_refused_by_name() -> None:
    result = CliRunner().invoke(slimctl, ["completion", "tcsh"])
    assert result.exit_code == 2
    assert "'tcsh' is not one of 'bash', 'zsh', 'fish'" in result.output
