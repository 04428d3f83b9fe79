"""A supervisor that notes every trapped call and lets it go on, for tests of who traps what."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import threading
from typing import TYPE_CHECKING

from slim.broker.errors import SyscallError, TargetGone
from slim.broker.kernel import seccomp_notify

if TYPE_CHECKING:
    from slim.broker.kernel.seccomp_notify import Notification


class Supervisor:
    """A thread behind one listener; owns the listener. `close` it after the targets ended."""

    def __init__(self, listener: int) -> None:
        self.notifications: list[Notification] = []
        """Everything trapped so far, oldest first."""
        self._listener = listener
        self._stop, self._stopping = os.pipe2(os.O_CLOEXEC)
        self._thread = threading.Thread(target=self._serve, name="supervisor")
        self._thread.start()

    def numbers(self) -> list[int]:
        """System call numbers of everything trapped so far."""
        return [notification.nr for notification in self.notifications]

    def wait_for_end(self, timeout_s: float = 10) -> None:
        """Until no process is under the filter any more."""
        self._thread.join(timeout_s)
        assert not self._thread.is_alive(), "a process is still under the filter"

    def close(self) -> None:
        os.write(self._stopping, b"x")
        self._thread.join()
        for fd in (self._listener, self._stop, self._stopping):
            os.close(fd)

    def _serve(self) -> None:
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        poll.register(self._stop, select.POLLIN)
        while True:
            for fd, events in poll.poll():
                if fd == self._stop or not events & select.POLLIN:
                    return
                self._answer_one()

    def _answer_one(self) -> None:
        notification = seccomp_notify.receive(self._listener)
        if notification is None:
            return
        self.notifications.append(notification)
        with contextlib.suppress(TargetGone):
            try:
                seccomp_notify.reply_continue(self._listener, notification.id)
            except SyscallError as error:
                if error.errno != errno.EINPROGRESS:
                    raise
