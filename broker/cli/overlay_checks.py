"""`slimctl doctor` on the overlays of a configuration: who sees to it that addresses are true."""

from __future__ import annotations

from typing import TYPE_CHECKING

from slim.broker.cli.checks import Check
from slim.broker.errors import SlimError
from slim.broker.overlay.source_guard import is_guarded, table_of
from slim.broker.overlay.state import DEFAULT_STATE_DIR, StateDirectory

if TYPE_CHECKING:
    from pathlib import Path

    from slim.broker.config import OverlayConfig
    from slim.broker.overlay.settings import OverlaySettings


def check_overlay(overlay: OverlayConfig, state_dir: Path = DEFAULT_STATE_DIR) -> Check:
    """Verdicts about peers without Slim go by their addresses."""
    name = f"overlay {overlay.name}"
    try:
        own = _find_own(overlay, StateDirectory(state_dir))
    except SlimError as error:
        return Check(name, "fail", error.message, error.hint)
    if own is None:
        unverified = f'"{overlay.unverified}"' if overlay.unverified else "by policy"
        return Check(
            name,
            "ok",
            "not built by slimctl overlay: who runs it must keep containers from sending from"
            " addresses of others, and enforces policy between peers without Slim;"
            f" unverified: {unverified}",
        )
    if is_guarded(own):
        return Check(name, "ok", "containers send from their own addresses only")
    return Check(
        name,
        "fail",
        f"containers may send from addresses of others: nftables has no table {table_of(own)}",
        f"slimctl overlay create {own.name}, with the options that it was made with, restores it;"
        " a firewall that flushes the ruleset takes it away",
    )


def _find_own(overlay: OverlayConfig, directory: StateDirectory) -> OverlaySettings | None:
    """The built-in overlay of those networks on this host."""
    for name in directory.names():
        state = directory.find(name)
        if state is not None and any(
            segment.network in overlay.networks for segment in state.settings.segments
        ):
            return state.settings
    return None
