"""Waiting for something to become true: bounded, and with the last state in the failure."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")
POLL_S = 0.02


def eventually(condition: Callable[[], T], what: str, timeout_s: float = 5.0) -> T:
    """The first true value of `condition`; AssertionError with the last one when time is up."""
    deadline = time.monotonic() + timeout_s
    while True:
        state = condition()
        if state:
            return state
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s:g} s: {what}; last seen: {state!r}")
        time.sleep(POLL_S)
