"""One trapped call from notification to reply: decode, observe, decide, perform.

The only place that turns an unexpected error into an answer, and it fails closed: the overlay if
the socket is still the program's own and the overlay obeys policy there, an errno otherwise.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from socket import IPPROTO_IPV6, IPV6_V6ONLY
from typing import TYPE_CHECKING

from slim.broker import actions, calls
from slim.broker.accepting import Acceptor
from slim.broker.connecting import Connector
from slim.broker.errors import TargetGone
from slim.broker.kernel import epoll
from slim.broker.kernel.socket_options import is_inet, read_cookie
from slim.broker.limiting import limit, set_within
from slim.broker.listening import Listening
from slim.broker.perform import capture, observe, observe_listener, write_int, write_name
from slim.broker.pipeline import Observed, decide

if TYPE_CHECKING:
    import socket

    from slim.broker.connections import ConnectionRecord
    from slim.broker.context import TrapContext
    from slim.broker.endpoints import Address
    from slim.broker.flows import Flow, FlowKey
    from slim.broker.listeners import ListenerRecord
    from slim.broker.supervisor import PendingCall
    from slim.broker.workloads import Workload

log = logging.getLogger(__name__)


class ContainerView:
    """What decide() may look at, for the containers of one workload (pipeline.View)."""

    def __init__(self, context: TrapContext, workload: Workload) -> None:
        self._context = context
        self._workload = workload
        self.workload_cookie = workload.cookie

    def is_overlay(self, address: Address) -> bool:
        return self._workload.is_overlay(address)

    def connection(self, cookie: int) -> ConnectionRecord | None:
        return self._context.connections.get(cookie)

    def limited(self, cookie: int) -> ConnectionRecord | None:
        return self._context.connections.limited(cookie)

    def listener(self, cookie: int) -> ListenerRecord | None:
        return self._context.listeners.get(cookie)

    def flow(self, key: FlowKey) -> Flow | None:
        return self._context.flows.get(key, time.monotonic())

    def is_isolated(self) -> bool:
        return self._workload.state.isolated_egress

    def deny_errno(self) -> int:
        return self._context.settings.deny_errno


class Trapping:
    """Handles every notification of every container."""

    def __init__(self, context: TrapContext) -> None:
        self._context = context
        self.acceptor = Acceptor(context)
        self.listening = Listening(context, self.acceptor)
        self.connector = Connector(context, self.listening.go_over_overlay)

    def handle(self, call: PendingCall) -> None:
        """Answer a notification, now or later. TargetGone if the thread has left."""
        if not call.workload.networks:
            # A bystander. Nothing of the host's is behind its fds but what it opened itself.
            call.proceed()
            return
        try:
            asked = calls.decode(call.notification)
        except OSError as error:
            self._context.counters["unreadable"] += 1
            fd = calls.fd_of(call.notification)
            is_other = fd is not None and not _is_socket(call.tid, fd)
            if error.errno == errno.EPERM or is_other:
                # No ptrace rights over this process: it runs unaccelerated. And the kernel looks
                # at the fd before the address.
                call.proceed()
            else:
                call.fail(errno.EFAULT)
            return
        if asked is None:
            call.proceed()
            return
        self._carry_out(call, asked, None)

    def _carry_out(self, call: PendingCall, asked: calls.SocketCall, answered: Flow | None) -> None:
        if isinstance(asked, calls.CreateEpoll):
            self._perform_epoll(call, decide(asked, None, call.container.view))
            return
        try:
            sock = capture(call.tid, asked.fd)
        except OSError as error:
            if error.errno in (errno.EBADF, errno.ENOTSOCK, errno.EPERM):
                # No such fd, no socket, or no right to look: the kernel has the right answer.
                call.proceed()
            else:
                # We have no fd or memory left, and it may be a host socket.
                self._after_error(call, asked, error)
            return
        try:
            self._observe_and_perform(call, asked, sock, answered)
        except OSError as error:
            self._after_error(call, asked, error)
        finally:
            sock.close()

    def _observe_and_perform(
        self,
        call: PendingCall,
        asked: calls.SocketCall,
        sock: socket.socket,
        answered: Flow | None,
    ) -> None:
        try:
            observed = self._observe(asked, sock)
        except OSError as error:
            if error.errno in (errno.ENOTSOCK, errno.EOPNOTSUPP, errno.ENOPROTOOPT):
                call.proceed()
                return
            raise
        call.ensure_valid()
        action = decide(asked, observed, call.container.view, answered)
        self._perform(call, asked, observed, sock, action)

    def _observe(self, asked: calls.SocketCall, sock: socket.socket) -> Observed:
        host_netns = self._context.host_netns
        if isinstance(asked, calls.Accept) and is_inet(sock):
            cookie = read_cookie(sock)
            listener = self._context.listeners.get(cookie)
            if listener is not None:
                return observe_listener(sock, cookie, listener.family, host_netns)
        return observe(sock, asked, host_netns)

    def _perform(
        self,
        call: PendingCall,
        asked: calls.SocketCall,
        observed: Observed,
        sock: socket.socket,
        action: actions.Action,
    ) -> None:
        match action, asked:
            case actions.Proceed(), _:
                self._proceed(call, sock, action)
            case actions.Return(), _:
                call.fail(action.errno)
            case actions.TellName(), calls.GetName():
                self._tell_name(call, asked, observed, action)
            case actions.TellV6Only(), calls.GetV6Only():
                self._tell_v6only(call, asked, sock, action)
            case actions.SetWithinLimits(), _:
                set_within(sock, action)
                call.fail(0)
            case actions.TakeConnection(), calls.Accept():
                self.acceptor.accept(
                    call, asked, action.listener, sock, nonblocking=observed.facts.nonblocking
                )
            case actions.ConnectHost(), calls.Connect():
                self.connector.connect_host(call, asked, observed, sock, action)
            case actions.AskControl(), calls.Connect():
                self._ask(call, asked, sock, action)
            case actions.Refuse(), _:
                self._refuse(call, sock, action)
            case actions.ConnectAgain(), calls.Connect():
                rejoiner = self.connector.rejoiner
                if not rejoiner.connect_again(call, asked, observed.facts, sock, action.record):
                    self._reconnect(call, asked, observed, sock)
            case actions.Disconnect(), calls.Connect():
                if action.then_proceed:
                    self._reconnect(call, asked, observed, sock)
                else:
                    self._restore(call, asked, observed, sock)
                    call.fail(0)
            case actions.ListenHost(), calls.Listen():
                self.listening.listen_host(call, asked, observed, sock)
            case actions.ListenAgain(), _:
                self.listening.listen_again(call, sock, action.backlog)
            case actions.VacatePort(), _:
                self.listening.vacate(call, call.workload.cookie, action.port)
            case _:
                raise AssertionError(f"{action} does not answer {asked}")

    # --- small actions ------------------------------------------------------------------------

    def _proceed(self, call: PendingCall, sock: socket.socket, action: actions.Proceed) -> None:
        if action.reason and action.destination is not None:
            self._context.record(
                call,
                read_cookie(sock),
                direction="out",
                local=None,
                peer=action.destination,
                path="fallback",
                reason=action.reason,
                rule=action.rule,
                shaping=action.shaping,
            )
            limit(sock, action.shaping, None)
            self.listening.go_over_overlay(call, action.destination)
        else:
            call.proceed()

    def _refuse(self, call: PendingCall, sock: socket.socket, action: actions.Refuse) -> None:
        self._context.record(
            call,
            read_cookie(sock),
            direction="out",
            local=None,
            peer=action.destination,
            path="denied",
            rule=action.rule,
        )
        call.fail(action.errno)

    def _tell_name(
        self,
        call: PendingCall,
        asked: calls.GetName,
        observed: Observed,
        action: actions.TellName,
    ) -> None:
        try:
            write_name(call, asked.address, asked.length, action.endpoint, observed.facts.domain)
        except OSError as error:
            call.fail(error.errno or errno.EFAULT)
            return
        call.fail(0)

    def _tell_v6only(
        self,
        call: PendingCall,
        asked: calls.GetV6Only,
        sock: socket.socket,
        action: actions.TellV6Only,
    ) -> None:
        value = action.v6only
        try:
            if value is None:
                value = bool(sock.getsockopt(IPPROTO_IPV6, IPV6_V6ONLY))
            write_int(call, asked.value, asked.length, value)
        except OSError as error:
            call.fail(error.errno or errno.EFAULT)
            return
        call.fail(0)

    def _ask(
        self,
        call: PendingCall,
        asked: calls.Connect,
        sock: socket.socket,
        action: actions.AskControl,
    ) -> None:
        # Nothing of the target's is held while the question is on its way.
        sock.close()
        self._context.control.ask(
            action.key,
            call.tid,
            lambda flow: self._resume(call, asked, flow),
            retry=action.retry,
        )

    def _resume(self, call: PendingCall, asked: calls.Connect, flow: Flow) -> None:
        def handle(call: PendingCall) -> None:
            call.ensure_valid()
            self._carry_out(call, asked, flow)

        call.container.attempt(call, handle)

    def _reconnect(
        self, call: PendingCall, asked: calls.Connect, observed: Observed, sock: socket.socket
    ) -> None:
        """A host socket that failed, and is tried again: from a fresh overlay socket on."""
        self._restore(call, asked, observed, sock)
        self._carry_out(call, asked, None)

    def _restore(
        self, call: PendingCall, asked: calls.Connect, observed: Observed, sock: socket.socket
    ) -> None:
        self.connector.restore_overlay(call, asked.fd, sock, observed.facts.domain, None, 0)

    def _perform_epoll(self, call: PendingCall, action: actions.Action) -> None:
        match action:
            case actions.MakeEpoll():
                fd = epoll.create(action.flags)
                try:
                    number = call.add_fd(fd, cloexec=bool(action.flags & os.O_CLOEXEC))
                except OSError as error:
                    call.fail(error.errno or errno.EMFILE)
                    return
                finally:
                    os.close(fd)
                call.container.epoll_numbers.add(number)
                # A signal in these microseconds costs the program an fd number, nothing else.
                call.finish(number)
            case actions.Return():
                call.fail(action.errno)
            case _:
                raise AssertionError(f"{action} does not answer epoll_create")

    # --- errors -------------------------------------------------------------------------------

    def _after_error(self, call: PendingCall, asked: calls.SocketCall, error: OSError) -> None:
        """Something failed that should not: which socket is behind the fd now?"""
        self._context.counters["errors"] += 1
        log.warning("thread %d: %s not brokered: %s", call.tid, type(asked).__name__, error)
        if not call.is_valid():
            raise TargetGone
        code = error.errno or errno.EIO
        if isinstance(asked, calls.CreateEpoll):
            call.fail(code)
            return
        try:
            with capture(call.tid, asked.fd) as sock:
                is_ours = observe(sock, asked, self._context.host_netns).is_ours
        except OSError:
            is_ours = True
        if is_ours:
            call.fail(code)
        elif isinstance(asked, calls.Connect) and call.workload.state.isolated_egress:
            call.fail(self._context.settings.deny_errno)
        else:
            call.proceed()


def _is_socket(tid: int, fd: int) -> bool:
    """False for no file and for other files; what cannot be looked at may be one."""
    try:
        capture(tid, fd).close()
    except OSError as error:
        return error.errno not in (errno.EBADF, errno.ENOTSOCK)
    return True
