"""The directory of slimd's sockets: made if need be, and claimed by one slimd at a time.

A second slimd would replace the sockets of the first and, when it gives up, end its trap process.
The claim is a lock (flock(2)) that ends with the process, however that ends.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import time
from typing import TYPE_CHECKING

from slim.broker.errors import ControlError

if TYPE_CHECKING:
    from pathlib import Path

LOCK_NAME = "slimd.lock"
PATIENCE_S = 3.0
"""A predecessor that was told to stop ends within two seconds."""
POLL_S = 0.05
MAX_PID_DIGITS = 20


async def claim(run_dir: Path) -> int:
    """Make the directory and lock it; the caller owns the fd, and the claim lasts as long as it.

    ControlError if the directory cannot be used, or if another slimd keeps it.
    """
    try:
        lock = _open(run_dir)
    except OSError as error:
        raise _unusable(run_dir, error) from None
    try:
        await _lock(lock, run_dir)
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
    except OSError as error:
        os.close(lock)
        raise _unusable(run_dir, error) from None
    except (ControlError, asyncio.CancelledError):
        os.close(lock)
        raise
    return lock


def _open(run_dir: Path) -> int:
    run_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
    return os.open(run_dir / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _unusable(run_dir: Path, error: OSError) -> ControlError:
    return ControlError(
        f"cannot use the directory {run_dir}: {error.strerror}",
        hint="slimd makes its sockets there: see run_dir in the configuration",
    )


async def _lock(lock: int, run_dir: Path) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                pid = os.pread(lock, MAX_PID_DIGITS, 0).decode("ascii", "replace").strip()
                raise ControlError(
                    f"another slimd (pid {pid or 'unknown'}) runs in {run_dir}",
                    hint="stop it first, or give this one a run_dir of its own",
                ) from None
        else:
            return
        await asyncio.sleep(POLL_S)
