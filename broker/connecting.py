"""Connections that a program makes: the host socket, the wait for it, the way back.

    ConnectHost: make alike -> SYN with the record -> swap -> (non-blocking) EINPROGRESS
                                                            (blocking) Attempt, held

Refused while held (attempts.py): control is asked again once, then a fresh overlay socket takes
the host socket's place and the call goes on there.
"""

from __future__ import annotations

import errno
import logging
import socket
from typing import TYPE_CHECKING

from slim.broker.actions import ConnectHost
from slim.broker.admission.preamble import Kind, Record
from slim.broker.attempts import Attempt, Attempts, answer
from slim.broker.endpoints import Endpoint
from slim.broker.errors import TargetGone
from slim.broker.flows import DeniedFlow, FastFlow, Flow, FlowKey, OverlayFlow
from slim.broker.kernel import sockaddr
from slim.broker.kernel.epoll import EPOLLERR, EPOLLHUP, EPOLLONESHOT, EPOLLOUT
from slim.broker.kernel.socket_options import (
    TCP_CLOSE,
    TCP_FASTOPEN_NO_COOKIE,
    TCP_SYN_SENT,
    read_cookie,
    reset,
    tcp_state,
)
from slim.broker.limiting import limit, mark
from slim.broker.opening import send_syn
from slim.broker.perform import OtherCopyAlive, capture, make_alike, swap
from slim.broker.rejoining import Rejoiner

if TYPE_CHECKING:
    from collections.abc import Callable

    from slim.broker.calls import Connect
    from slim.broker.context import TrapContext
    from slim.broker.pipeline import Observed
    from slim.broker.supervisor import PendingCall

log = logging.getLogger(__name__)


class Connector:
    def __init__(
        self, context: TrapContext, go_over_overlay: Callable[[PendingCall, Endpoint], None]
    ) -> None:
        self._context = context
        self._go_over_overlay = go_over_overlay
        self._attempts = Attempts(context, self._path_failed, self._take_back)
        self.rejoiner = Rejoiner(context, self._attempts, self._try_again)
        self._watched: dict[int, int] = {}

    def forget(self, cookie: int) -> None:
        """The socket is gone; a watch on it will never report."""
        self.rejoiner.untold.discard(cookie)
        token = self._watched.pop(cookie, None)
        if token is not None:
            self._context.loop.forget(token)

    # --- the swap -----------------------------------------------------------------------------

    def connect_host(
        self,
        call: PendingCall,
        asked: Connect,
        observed: Observed,
        old: socket.socket,
        action: ConnectHost,
    ) -> None:
        """Carry out ConnectHost; takes `old`, the captured socket of the program."""
        domain = observed.facts.domain
        reason = self._start(call, asked.fd, domain, old, action, observed.facts.nonblocking)
        if reason:
            old.close()
            if action.flow.shaping is not None:
                with capture(call.tid, asked.fd) as own:
                    limit(own, action.flow.shaping, None)
            self.fall_back(call, observed.facts.cookie, action.flow, action.key, reason)

    def _start(
        self,
        call: PendingCall,
        fd: int,
        domain: int,
        old: socket.socket,
        action: ConnectHost,
        nonblocking: bool,
        *,
        is_second: bool = False,
    ) -> str:
        """Send the SYN and swap; gives the reason why not, with `old` still in its place."""
        context, flow = self._context, action.flow
        if not nonblocking and self._attempts.is_full(call.workload.cookie):
            return "too-many-held"
        sealer = context.keyring.sealer(flow.peer)
        if sealer is None:
            context.flows.drop(action.key)
            return "no-key"
        sockets = context.sockets
        new, refused = make_alike(old, domain, call.workload, sockets, listener=False)
        if refused:
            new.close()
            return refused
        cookie = read_cookie(new)
        record = Record(flow.flow, Kind.DATA, Endpoint(flow.source, action.bound_port))
        try:
            new.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN_NO_COOKIE, 1)
            limit(new, flow.shaping, flow.peer_rate)
            mark(new, call.workload.state.mark)
            sealed = sealer.seal(record, flow.host)
            unsent = send_syn(new, sealed, sockaddr.for_python(flow.host, domain), nonblocking)
            local_port = action.bound_port or new.getsockname()[1]
            sockets.seal_connected(
                new,
                call.workload.cookie,
                Endpoint(flow.source, action.bound_port),
                action.key.destination,
            )
        except OSError as error:
            new.close()
            return self._refused_at_once(action, error)
        # On record before the swap: a successor of this process must know the socket in any case.
        context.record(
            call,
            cookie,
            direction="out",
            local=Endpoint(flow.source, local_port),
            peer=action.key.destination,
            path="fast",
            host_peer=flow.host,
            peer_host=flow.peer,
            rule=flow.rule,
            shaping=flow.shaping,
            peer_rate=flow.peer_rate,
        )
        try:
            swap(call, fd, old, new, context.hand, then=errno.EINPROGRESS if nonblocking else None)
        except OtherCopyAlive:
            context.connections.forget(cookie)
            reset(new)
            return "copy-in-another-process"
        except (TargetGone, OSError):
            context.connections.forget(cookie)
            reset(new)
            raise
        if nonblocking:
            self._leave(call, new, cookie, action)
        else:
            attempt = Attempt(
                new,
                cookie,
                fd,
                domain,
                action.key,
                flow,
                action.bound_port,
                [call],
                is_second,
                context.epoch,
            )
            attempt.unsent = unsent
            self._attempts.hold(attempt)
        return ""

    def _refused_at_once(self, action: ConnectHost, error: OSError) -> str:
        if error.errno == errno.EOPNOTSUPP:
            # net.ipv4.tcp_fastopen lacks bit 1 (client); ip-sysctl documents it.
            return "tfo-off"
        self._path_failed(action.flow, action.key, error.errno or 0)
        return f"host-path-{errno.errorcode.get(error.errno or 0, 'error').lower()}"

    def _leave(
        self, call: PendingCall, new: socket.socket, cookie: int, action: ConnectHost
    ) -> None:
        """Non-blocking: the program owns the wait. Watch, without an fd, what becomes of it."""
        state = tcp_state(new)
        if state == TCP_CLOSE:
            # Refused within the call, as can be on one host.
            self._path_failed(action.flow, action.key, errno.ECONNREFUSED)
        elif state == TCP_SYN_SENT:

            def on_event(events: int) -> None:
                self.forget(cookie)
                if events & (EPOLLERR | EPOLLHUP):
                    self._path_failed(action.flow, action.key, errno.ECONNREFUSED)

            self._watched[cookie] = self._context.loop.watch(
                new.fileno(), on_event, EPOLLOUT | EPOLLONESHOT
            )
        new.close()
        try:
            call.fail(errno.EINPROGRESS)
        except TargetGone:
            # A signal: it calls again, and is to be told this and not EALREADY.
            self.rejoiner.untold.add(cookie)
            raise
        finally:
            self._context.hand.nothing()

    # --- refused while held -------------------------------------------------------------------

    def _take_back(self, attempt: Attempt, call: PendingCall, code: int) -> None:
        """The host socket did not get through: ask once more, then back to the overlay."""
        if attempt.is_second and attempt.epoch == self._context.epoch:
            self._try_again(attempt, call, OverlayFlow("host-path-failed", "", 0), code)
            return
        self._context.control.ask(
            attempt.key,
            call.tid,
            lambda flow: self._try_again(attempt, call, flow, code),
            retry=True,
        )

    def _try_again(self, attempt: Attempt, call: PendingCall, flow: Flow, code: int) -> None:
        try:
            if isinstance(flow, FastFlow):
                self._second_attempt(attempt, call, flow)
            elif isinstance(flow, DeniedFlow):
                call.fail(flow.errno)
            else:
                self._go_back(attempt, call, flow)
        except TargetGone:
            self._context.counters["interrupted"] += 1
        except OSError as error:
            if not call.is_valid():
                # It was killed, with a thousand others perhaps.
                self._context.counters["interrupted"] += 1
                return
            log.warning("thread %d: connect not taken back: %s", call.tid, error)
            answer(call, code)

    def _second_attempt(self, attempt: Attempt, call: PendingCall, flow: FastFlow) -> None:
        old = capture(call.tid, attempt.fd)
        if read_cookie(old) != attempt.cookie:
            old.close()
            call.fail(errno.EBADF)
            return
        self._context.connections.forget(attempt.cookie)
        action = ConnectHost(flow, attempt.key, attempt.bound_port)
        reason = self._start(
            call, attempt.fd, attempt.domain, old, action, nonblocking=False, is_second=True
        )
        if reason:
            old.close()
            self._go_back(attempt, call, OverlayFlow(reason, flow.rule, 0))

    def _go_back(self, attempt: Attempt, call: PendingCall, flow: OverlayFlow | DeniedFlow) -> None:
        """Put a fresh overlay socket in the host socket's place and let the call go on there."""
        if not attempt.flow.fallback_lawful:
            self._deny(call, attempt.key, attempt.flow.rule)
            return
        reason = flow.reason if isinstance(flow, OverlayFlow) else ""
        with capture(call.tid, attempt.fd) as old:
            if read_cookie(old) != attempt.cookie:
                # Closed meanwhile, and the number used anew: that file is not ours to replace.
                call.fail(errno.EBADF)
                return
            cookie = self.restore_overlay(
                call, attempt.fd, old, attempt.domain, attempt.key, attempt.bound_port
            )
        self._context.record(
            call,
            cookie,
            direction="out",
            local=None,
            peer=attempt.key.destination,
            path="fallback",
            reason=reason or "host-path-failed",
            rule=attempt.flow.rule,
            shaping=attempt.flow.shaping,
        )
        self._go_over_overlay(call, attempt.key.destination)

    def restore_overlay(
        self,
        call: PendingCall,
        fd: int,
        old: socket.socket,
        domain: int,
        key: FlowKey | None,
        bound_port: int,
    ) -> int:
        """Swap a fresh overlay socket in; takes `old`; gives the new socket's cookie."""
        old_cookie = read_cookie(old)
        new, _ = make_alike(old, domain, call.workload, None, listener=False)
        with new:
            if key is not None and (key.source is not None or bound_port):
                any_address = "::" if domain == socket.AF_INET6 else "0.0.0.0"
                host = key.source or Endpoint.parse(f"[{any_address}]:0").address
                new.bind(sockaddr.for_python(Endpoint(host, bound_port), domain))
            swap(call, fd, old, new, self._context.hand)
            self._context.connections.forget(old_cookie)
            return read_cookie(new)

    # --- the way back -------------------------------------------------------------------------

    def fall_back(
        self, call: PendingCall, cookie: int, flow: FastFlow, key: FlowKey, reason: str
    ) -> None:
        """The program's own socket, of that cookie, is in its place: use it, if that is lawful."""
        if not flow.fallback_lawful:
            self._deny(call, key, f"{flow.rule}; {reason}")
            return
        self._context.record(
            call,
            cookie,
            direction="out",
            local=None,
            peer=key.destination,
            path="fallback",
            reason=reason,
            rule=flow.rule,
            shaping=flow.shaping,
        )
        self._go_over_overlay(call, key.destination)

    def _deny(self, call: PendingCall, key: FlowKey, rule: str) -> None:
        self._context.counters["fallback_unlawful"] += 1
        log.info("connect to %s refused: %s", key.destination, rule)
        call.fail(self._context.settings.deny_errno)

    def _path_failed(self, flow: FastFlow, key: FlowKey, code: int) -> None:
        self._context.flows.drop(key)
        self._context.counters["host_path_failures"] += 1
        self._context.control.path_failed(flow.peer, flow.host, code)
