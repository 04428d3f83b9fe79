"""A listening unix socket of control's, and a task for each conversation on it.

Who waits while there is no room stays in the kernel's queue; nobody is turned away.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Coroutine

log = logging.getLogger(__name__)

MAX_CONVERSATIONS = 256
ACCEPT_PAUSE_S = 0.5


class Conversations:
    """Owns the listening socket, which it makes non-blocking, and the tasks."""

    def __init__(
        self,
        listener: socket.socket,
        who: str,
        converse: Callable[[socket.socket], Coroutine[None, None, None]],
    ) -> None:
        """`converse` takes the socket, which does not block; `who` connects, for the log."""
        self._listener = listener
        self._who = who
        self._converse = converse
        self._tasks: set[asyncio.Task[None]] = set()
        self._pause: asyncio.TimerHandle | None = None
        self._is_stopped = False
        listener.setblocking(False)
        self._listen()

    def stop(self) -> None:
        """Accept no more."""
        self._is_stopped = True
        if self._pause is not None:
            self._pause.cancel()
        asyncio.get_running_loop().remove_reader(self._listener)

    def close(self) -> None:
        """Cancel what goes on; what waits in the queue stays there if others hold the socket."""
        self.stop()
        self._listener.close()
        for task in self._tasks:
            task.cancel()

    async def wait(self) -> None:
        """Until every conversation that has begun is over."""
        await asyncio.gather(*self._tasks)

    def _listen(self) -> None:
        self._pause = None
        asyncio.get_running_loop().add_reader(self._listener, self._accept)

    def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            sock, _ = self._listener.accept()
        except BlockingIOError:
            return
        except OSError as error:
            # No fd left. The queue would wake us at once.
            log.error("%s is not heard: %s", self._who, error)
            loop.remove_reader(self._listener)
            self._pause = loop.call_later(ACCEPT_PAUSE_S, self._listen)
            return
        sock.setblocking(False)
        task = asyncio.create_task(self._converse(sock))
        self._tasks.add(task)
        task.add_done_callback(self._on_done)
        if len(self._tasks) >= MAX_CONVERSATIONS:
            loop.remove_reader(self._listener)

    def _on_done(self, task: asyncio.Task[None]) -> None:
        was_full = len(self._tasks) == MAX_CONVERSATIONS
        self._tasks.discard(task)
        if was_full and self._pause is None and not self._is_stopped:
            self._listen()
        if not task.cancelled() and task.exception() is not None:
            log.error("a conversation with %s failed", self._who, exc_info=task.exception())


async def until_readable(sock: socket.socket) -> None:
    """Wait until recvmsg(2) on the socket has something to say."""
    loop = asyncio.get_running_loop()
    readable = loop.create_future()
    loop.add_reader(sock, _set, readable)
    try:
        await readable
    finally:
        loop.remove_reader(sock)


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
