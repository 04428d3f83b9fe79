"""What control does beside its callbacks: tasks that nobody waits for, each failure on record."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

log = logging.getLogger(__name__)


class Tasks:
    """Holds them until they are done: the loop itself keeps only weak references."""

    def __init__(self, on_failed: Callable[[bool], None]) -> None:
        """`on_failed` is told of an exception, and whether the task was vital."""
        self._on_failed = on_failed
        self._running: set[asyncio.Task[None]] = set()

    def spawn(
        self, work: Coroutine[None, None, None], *, is_vital: bool = False
    ) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._running.add(task)
        task.add_done_callback(lambda task: self._on_done(task, is_vital=is_vital))
        return task

    def _on_done(self, task: asyncio.Task[None], *, is_vital: bool) -> None:
        self._running.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("a task failed", exc_info=task.exception())
            self._on_failed(is_vital)
