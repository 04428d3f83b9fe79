"""Calls answered while there is no traps: the keeper's one rule, after `gap_limit_s` without any,
or at once when slimd is gone for good (`slimctl stop --release`).

    a socket of the workload's own: it goes on natively; what slimd would have brokered goes over
                                    the overlay, or fails where that is not allowed; before a
                                    bind, retained listeners of ended programs are closed
    a socket that slimd put there:  waits for the successor, which makes the thread call again

Decides with pipeline.decide, which knows no flow, listener or connection here. Holds nothing: the
keeper's fds are borrowed from `begin` to `end`.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import select
from typing import TYPE_CHECKING

from slim.broker import actions, calls
from slim.broker.endpoints import contains_any
from slim.broker.errors import SyscallError, TargetGone
from slim.broker.kernel import seccomp_notify
from slim.broker.perform import capture, observe
from slim.broker.pipeline import decide
from slim.broker.workloads import network_from_packed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from slim.broker.connections import ConnectionRecord
    from slim.broker.endpoints import Address
    from slim.broker.flows import Flow, FlowKey
    from slim.broker.kernel.seccomp_notify import Notification
    from slim.broker.listeners import ListenerRecord
    from slim.broker.local.states import WorkloadState

log = logging.getLogger(__name__)

GAP_ERRNO = errno.EACCES


class GapView:
    """What decide() may look at when nobody keeps a table (pipeline.View)."""

    def __init__(self, state: WorkloadState) -> None:
        self.workload_cookie = state.cookie
        self.refuses_connects = state.fail_mode == "closed" or state.isolated_egress
        self._networks = tuple(network_from_packed(*packed) for packed in state.networks)
        self.is_bystander = not state.networks

    def is_overlay(self, address: Address) -> bool:
        return contains_any(self._networks, address)

    def connection(self, cookie: int) -> ConnectionRecord | None:
        return None

    def listener(self, cookie: int) -> ListenerRecord | None:
        return None

    def limited(self, cookie: int) -> ConnectionRecord | None:
        return None

    def flow(self, key: FlowKey) -> Flow | None:
        return None

    def is_isolated(self) -> bool:
        return self.refuses_connects

    def deny_errno(self) -> int:
        return GAP_ERRNO


class Supervised:
    """One container during a gap; borrows its seccomp listener."""

    def __init__(
        self,
        listener: int,
        state: WorkloadState,
        host_netns: int,
        vacate: Callable[[int, int], None],
    ) -> None:
        self.listener = listener
        self._vacate = vacate
        self._view = GapView(state)
        self._refuses_listeners = state.fail_mode == "closed" or state.isolated_ingress
        self._host_netns = host_netns

    def receive(self) -> bool:
        """Answer the next call, if there is one; False once no process is left."""
        # RECV blocks on a listener that has nothing to give: look first.
        look = select.poll()
        look.register(self.listener, select.POLLIN)
        ready = look.poll(0)
        if not ready:
            return True
        if not ready[0][1] & select.POLLIN:
            return False
        notification = seccomp_notify.receive(self.listener)
        if notification is not None:
            with contextlib.suppress(TargetGone):
                self._answer(notification)
        return True

    def _answer(self, notification: Notification) -> None:
        code = self._judge(notification)
        if code is None:
            return
        if code:
            seccomp_notify.reply(self.listener, notification.id, error=code)
        else:
            seccomp_notify.reply_continue(self.listener, notification.id)

    def _judge(self, notification: Notification) -> int | None:
        """0: the call goes on natively; an errno: it fails with that; None: it waits."""
        if self._view.is_bystander:
            return 0
        try:
            asked = calls.decode(notification)
        except OSError as error:
            # Without the right to look nobody knows whose socket it is.
            return None if error.errno == errno.EPERM else errno.EFAULT
        if asked is None or isinstance(asked, calls.CreateEpoll):
            return 0
        try:
            with capture(notification.tid, asked.fd) as sock:
                observed = observe(sock, asked, self._host_netns)
        except OSError as error:
            return error.errno if error.errno in (errno.EBADF, errno.ENOTSOCK) else None
        if observed.is_ours or observed.facts.netns == self._host_netns:
            return None
        if not seccomp_notify.is_valid(self.listener, notification.id):
            raise TargetGone
        match decide(asked, observed, self._view):
            case actions.Proceed():
                return 0
            case actions.VacatePort(port=port):
                self._vacate(self._view.workload_cookie, port)
                return 0
            case actions.AskControl():
                return GAP_ERRNO if self._view.refuses_connects else 0
            case actions.ListenHost():
                return GAP_ERRNO if self._refuses_listeners else 0
            case actions.Return(errno=code):
                return code
            case _:
                return None


class Gap:
    """All containers while traps is away."""

    def __init__(self, host_netns: int, vacate: Callable[[int, int], None]) -> None:
        """`vacate` closes what is kept of listeners of that workload and port that have ended."""
        self._host_netns = host_netns
        self._vacate = vacate
        self._poll = select.epoll()
        self._containers: dict[int, Supervised] = {}
        self.is_open = False

    def __len__(self) -> int:
        """Containers that still have processes, while it is open."""
        return len(self._containers)

    def fileno(self) -> int:
        """Readable when a call waits for an answer."""
        return self._poll.fileno()

    def begin(self, containers: Iterable[tuple[int, WorkloadState]]) -> None:
        """Answer for these seccomp listeners from now on; borrows them."""
        self.is_open = True
        for listener, state in containers:
            self._containers[listener] = Supervised(listener, state, self._host_netns, self._vacate)
            self._poll.register(listener, select.EPOLLIN)

    def end(self) -> None:
        """Answer no more; what was received and not answered waits for traps."""
        for listener in [*self._containers]:
            self.leave(listener)
        self.is_open = False

    def serve(self) -> None:
        """Answer one call of each container that has some."""
        for listener, _ in self._poll.poll(0):
            container = self._containers.get(listener)
            if container is None:
                continue
            try:
                if not container.receive():
                    self.leave(listener)
            except SyscallError as error:
                # Its threads wait for traps; the other containers go on.
                log.error("a call is not answered: %s", error)
                self.leave(listener)

    def leave(self, listener: int) -> None:
        """Answer no more for this listener, if it is one."""
        if self._containers.pop(listener, None) is None:
            return
        try:
            self._poll.unregister(listener)
        except OSError:
            log.debug("seccomp listener %d is gone already", listener)

    def close(self) -> None:
        self.end()
        self._poll.close()
