"""Finds the keeper of a run directory, or starts it; and what it gives to traps at the start."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from typing import TYPE_CHECKING

from slim.broker.control_links import KeeperClient
from slim.broker.endpoints import packed16
from slim.broker.errors import ControlError
from slim.broker.local import states

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from slim.broker.config import BrokerConfig

LIMIT_S = 5.0
POLL_S = 0.01


async def connect_keeper(
    run_dir: Path, options: list[str], on_end: Callable[[], None]
) -> KeeperClient:
    """The connection to the keeper, which is started with `options` if none answers.

    ControlError when it does not answer in time.
    """
    path = str(run_dir / "keeper.sock")
    try:
        return KeeperClient(path, on_end)
    except OSError:
        await asyncio.to_thread(_spawn, options)
    deadline = time.monotonic() + LIMIT_S
    while True:
        try:
            return KeeperClient(path, on_end)
        except OSError as error:
            if time.monotonic() > deadline:
                raise ControlError(
                    f"the keeper does not answer at {path}: {error}",
                    hint="its messages are in the log above",
                ) from None
        await asyncio.sleep(POLL_S)


def _spawn(options: list[str]) -> None:
    # A session of its own: what ends slimd's terminal or process group must not end it.
    subprocess.Popen(
        [sys.executable, "-m", "slim.broker.keeper", *options],
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )


def make_settings(config: BrokerConfig, encryption: str) -> states.TrapSettings:
    """What traps needs of the configuration; `encryption` is the module with seal and open."""
    return states.TrapSettings(
        host_addresses=[packed16(address) for address in config.host.addresses],
        host_ports=(config.host.ports.first, config.host.ports.last),
        resolve_budget_ms=config.limits.resolve_budget_ms,
        connect_budget_ms=config.limits.connect_budget_ms,
        flow_lifetime_s=config.limits.flow_lifetime_s,
        deny_errno=config.policy.errno,
        encryption=encryption,
        log_level=config.log.level,
        guard=config.guard,
        host=config.host.name,
    )
