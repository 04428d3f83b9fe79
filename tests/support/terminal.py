"""Running slimctl as an operator does: in a process, on a terminal of a given width or piped."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

LIMIT_S = 30
SLIMCTL = (sys.executable, "-m", "slim.broker.cli.main")


def _environment(**more: str) -> dict[str, str]:
    left_out = ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "SLIM_RUN_DIR")
    kept = {name: value for name, value in os.environ.items() if name not in left_out}
    return {**kept, "TERM": "xterm-256color", "LC_ALL": "C.UTF-8", **more}


def slimctl(*words: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run it with its output in pipes."""
    return subprocess.run(
        [*SLIMCTL, *map(str, words)],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        env=_environment(**environment),
    )


def slimctl_on_terminal(*words: str | Path, columns: int, **environment: str) -> str:
    """What it shows on a terminal that wide; it must succeed."""
    controller, terminal = pty.openpty()
    try:
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("4H", 24, columns, 0, 0))
        process = subprocess.Popen(
            [*SLIMCTL, *map(str, words)],
            stdin=terminal,
            stdout=terminal,
            stderr=subprocess.STDOUT,
            env=_environment(**environment),
        )
    finally:
        os.close(terminal)
    shown = bytearray()
    try:
        # The last writer gone, a terminal reads as EIO.
        with contextlib.suppress(OSError):
            while chunk := os.read(controller, 1 << 16):
                shown += chunk
        assert process.wait(LIMIT_S) == 0, shown.decode()
    finally:
        os.close(controller)
        if process.poll() is None:
            process.kill()
            process.wait()
    return shown.decode().replace("\r\n", "\n")
