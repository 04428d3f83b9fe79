"""Short commands of the lab (ip, mount, slimctl): run to their end, bounded, checked."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from typing import TYPE_CHECKING

from slim.broker.errors import SlimError

if TYPE_CHECKING:
    from collections.abc import Iterable

TIMEOUT_S = 30.0


def run(*argv: str, timeout_s: float = TIMEOUT_S) -> str:
    """Run a command and give its standard output; SlimError says how it failed.

    The command gets a session of its own, so that Ctrl-C at the terminal reaches only us and never
    stops a command of the clean-up half way.
    """
    shown = shlex.join(argv)
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout_s,
            text=True,
            errors="replace",
            check=False,
            start_new_session=True,
        )
    except FileNotFoundError:
        raise SlimError(f"cannot run {argv[0]}: it is not installed") from None
    except subprocess.TimeoutExpired:
        raise SlimError(f"{shown}: did not end within {timeout_s:g} s") from None
    if done.returncode != 0:
        reason = (done.stderr or done.stdout).strip() or "no message"
        raise SlimError(f"{shown}: exit status {done.returncode}: {reason}")
    return done.stdout


def find_missing(programs: Iterable[str]) -> list[str]:
    """Those of the programs that are neither on PATH nor a path to something executable."""
    return [program for program in programs if shutil.which(program) is None]
