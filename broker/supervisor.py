"""One container: receives its notifications and ends with its last process.

`PendingCall` is the one way to answer a notification; whoever holds it may answer it once, and
learns by TargetGone that the thread has left its call.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import time
from typing import TYPE_CHECKING

from slim.broker.errors import SyscallError, TargetGone
from slim.broker.kernel import seccomp_notify
from slim.broker.kernel.epoll import EPOLLHUP, EPOLLIN

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable

    from slim.broker.local.states import ContainerState
    from slim.broker.loop import Loop
    from slim.broker.pipeline import View
    from slim.broker.workloads import Workload

log = logging.getLogger(__name__)


class PendingCall:
    """One notification that waits for its answer."""

    __slots__ = ("container", "notification", "received", "workload")

    def __init__(
        self,
        container: Supervisor,
        workload: Workload,
        notification: seccomp_notify.Notification,
    ) -> None:
        self.container = container
        self.workload = workload
        self.notification = notification
        self.received = time.monotonic()

    @property
    def tid(self) -> int:
        return self.notification.tid

    def is_valid(self) -> bool:
        return not self.container.is_closed and seccomp_notify.is_valid(
            self.container.listener, self.notification.id
        )

    def ensure_valid(self) -> None:
        """TargetGone unless the thread still waits: what was read of it so far is its own."""
        if not self.is_valid():
            raise TargetGone

    def finish(self, value: int = 0) -> None:
        self._check()
        seccomp_notify.reply(self.container.listener, self.notification.id, value=value)

    def fail(self, errno: int) -> None:
        """The call fails with that errno (0: it returns 0)."""
        self._check()
        seccomp_notify.reply(self.container.listener, self.notification.id, error=errno)

    def proceed(self) -> None:
        self._check()
        seccomp_notify.reply_continue(self.container.listener, self.notification.id)

    def replace(self, fd: int, target_fd: int, *, cloexec: bool) -> None:
        """Put our file behind the target's fd number; borrows `fd`."""
        self._check()
        seccomp_notify.replace_fd(
            self.container.listener, self.notification.id, fd, target_fd, cloexec=cloexec
        )

    def add_fd(self, fd: int, *, cloexec: bool) -> int:
        """A new fd of the target for our file, of that number; borrows `fd`.

        The call is not answered yet: until it is, a signal may make the thread leave it, and the
        program does not know of the number.
        """
        self._check()
        return seccomp_notify.add_fd(
            self.container.listener, self.notification.id, fd, cloexec=cloexec
        )

    def _check(self) -> None:
        if self.container.is_closed:
            raise TargetGone


class Supervisor:
    """Owns the container's seccomp listener."""

    view: View
    """What decide() sees; set by traps before the first notification."""

    def __init__(
        self,
        state: ContainerState,
        listener: int,
        workload: Workload,
        loop: Loop,
        handle: Callable[[PendingCall], None],
        on_end: Callable[[Supervisor], None],
        counters: Counter[str],
    ) -> None:
        self.state = state
        self.listener = listener
        self.workload = workload
        self.is_closed = False
        self.counters = counters
        self.epoll_numbers: set[int] = set()
        """Fd numbers that epoll_create returned in this container; any of them may be a set."""
        self._loop = loop
        self._handle = handle
        self._on_end = on_end
        seccomp_notify.set_sync_wake_up(listener)
        self._token = loop.watch(listener, self._on_event)

    def close(self) -> None:
        if not self.is_closed:
            self.is_closed = True
            self._loop.unwatch(self.listener, self._token)
            os.close(self.listener)

    def _on_event(self, events: int) -> None:
        if events & EPOLLIN:
            self._receive()
        elif events & EPOLLHUP:
            # No process uses the filter any more; nothing will ever come.
            self._on_end(self)

    def _receive(self) -> None:
        notification = seccomp_notify.receive(self.listener)
        if notification is None:
            return
        self.counters["notifications"] += 1
        self.attempt(PendingCall(self, self.workload, notification), self._handle)

    def attempt(self, call: PendingCall, handle: Callable[[PendingCall], None]) -> None:
        """Handle a call, now or when its answer is known; never raises, so nobody else suffers."""
        try:
            handle(call)
        except TargetGone:
            self.counters["interrupted"] += 1
        except SyscallError as error:
            # Answering itself failed; the thread stays held until a signal, the others go on.
            log.error("container %s: call not answered: %s", self.state.container, error)
            self.counters["unanswered"] += 1
        except Exception:
            # A bug of ours: the program gets an error, not a call that never returns.
            log.exception("container %s: call not handled", self.state.container)
            self.counters["unanswered"] += 1
            with contextlib.suppress(TargetGone, SyscallError):
                call.fail(errno.EIO)
