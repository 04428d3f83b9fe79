"""What systemd is told of slimd: ready, stopping, alive (sd_notify(3), Type=notify, WatchdogSec=).

Without systemd, that is without $NOTIFY_SOCKET, nothing is said.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket

log = logging.getLogger(__name__)

READY = "READY=1"
STOPPING = "STOPPING=1"
ALIVE = "WATCHDOG=1"


def notify(state: str) -> None:
    """Say one thing; what cannot be said at once is logged and lost."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path.startswith(("/", "@")):
        return
    kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
    try:
        with socket.socket(socket.AF_UNIX, kind) as sock:
            # An abstract name is written with @ (unix(7)).
            sock.connect(path.replace("@", "\0", 1) if path.startswith("@") else path)
            sock.send(state.encode())
    except OSError as error:
        log.warning("systemd is not told %s: %s", state, error)


def watchdog_interval_s() -> float | None:
    """How often systemd wants a sign of life, halved as sd_watchdog_enabled(3) advises."""
    wanted, pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", "")
    if not wanted.isascii() or not wanted.isdigit() or pid not in ("", str(os.getpid())):
        return None
    return int(wanted) / 2e6 or None


async def show_life() -> None:
    """For ever, from the loop that must not stand still; returns at once if nobody asks."""
    interval_s = watchdog_interval_s()
    while interval_s is not None:
        notify(ALIVE)
        await asyncio.sleep(interval_s)
