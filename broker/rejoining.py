"""connect() on a socket that slimd put there: it joins what goes on, or goes on with it.

That was begun by an earlier call: a non-blocking one, one that a signal ended, or one that was held
when a predecessor of this process was killed. Of the last nobody knows but the socket itself and
its record.
"""

from __future__ import annotations

import errno
import os
import socket
from typing import TYPE_CHECKING

from slim.broker.admission.preamble import Kind, Record
from slim.broker.attempts import Attempt
from slim.broker.endpoints import Endpoint
from slim.broker.errors import TargetGone
from slim.broker.flows import FastFlow, FlowKey
from slim.broker.kernel import sockaddr
from slim.broker.kernel.socket_options import (
    TCP_CLOSE,
    TCP_ESTABLISHED,
    TCP_SYN_SENT,
    has_written,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from slim.broker.attempts import Attempts
    from slim.broker.calls import Connect
    from slim.broker.connections import ConnectionRecord
    from slim.broker.context import TrapContext
    from slim.broker.flows import Flow
    from slim.broker.kernel.socket_options import SocketFacts
    from slim.broker.supervisor import PendingCall


class Rejoiner:
    def __init__(
        self,
        context: TrapContext,
        attempts: Attempts,
        try_again: Callable[[Attempt, PendingCall, Flow, int], None],
    ) -> None:
        self._context = context
        self._attempts = attempts
        self._try_again = try_again
        self.untold: set[int] = set()
        """Non-blocking connects, by cookie, whose caller left before it was told EINPROGRESS."""

    def connect_again(
        self,
        call: PendingCall,
        asked: Connect,
        facts: SocketFacts,
        sock: socket.socket,
        record: ConnectionRecord,
    ) -> bool:
        """Answer from the socket's state; False: it failed before, treat it as a new connect.

        Borrows `sock`, the captured host socket.
        """
        attempt = self._attempts.find(facts.cookie)
        if attempt is not None:
            self._attempts.join(attempt, call, nonblocking=facts.nonblocking)
            return True
        if facts.state == TCP_SYN_SENT and facts.nonblocking:
            call.fail(errno.EINPROGRESS if facts.cookie in self.untold else errno.EALREADY)
            self.untold.discard(facts.cookie)
            return True
        host = record.host_endpoint()
        if facts.state == TCP_CLOSE or host is None:
            code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code:
                call.fail(code)
            return bool(code)
        # The record is the first that is ever written.
        is_sent = facts.state not in (TCP_SYN_SENT, TCP_ESTABLISHED) or has_written(sock)
        if facts.state == TCP_SYN_SENT or not is_sent:
            if self._attempts.is_full(record.workload):
                call.fail(errno.EALREADY)
                return True
            attempt = self._make_attempt(call, asked.fd, facts, sock, record, host)
            self._go_on(attempt, call, is_sent=is_sent)
        else:
            # Established: returns at once, 0 the first time and EISCONN from then on.
            call.fail(sock.connect_ex(sockaddr.for_python(host, facts.domain)))
        return True

    def _make_attempt(
        self,
        call: PendingCall,
        fd: int,
        facts: SocketFacts,
        sock: socket.socket,
        record: ConnectionRecord,
        host: Endpoint,
    ) -> Attempt:
        """What can be known again of a handshake that goes on.

        What control said of the flow is forgotten; it is asked again if the handshake fails.
        """
        local = record.local_endpoint()
        flow = FastFlow(
            source=local.address,
            host=host,
            flow=0,
            peer=record.peer_host,
            fallback_lawful=not call.workload.state.isolated_egress,
            rule=record.rule,
            expires_s=0.0,
        )
        # Another port than the host socket's own is one that the program had bound.
        bound_port = self._context.sockets.bound_port(sock, local)
        source = local.address if bound_port else None
        return Attempt(
            socket.socket(facts.domain, socket.SOCK_STREAM, fileno=os.dup(sock.fileno())),
            facts.cookie,
            fd,
            facts.domain,
            FlowKey(record.workload, source, record.peer_endpoint()),
            flow,
            bound_port,
            [call],
            is_second=False,
            epoch=self._context.epoch,
        )

    def _go_on(self, attempt: Attempt, call: PendingCall, *, is_sent: bool) -> None:
        if is_sent:
            self._attempts.hold(attempt)
            return
        # Without fast open the record follows the handshake, and it died with whoever sealed it.
        self._context.control.ask(
            attempt.key,
            call.tid,
            lambda flow: call.container.attempt(
                call, lambda call: self._seal_again(attempt, call, flow)
            ),
            retry=False,
        )

    def _seal_again(self, attempt: Attempt, call: PendingCall, flow: Flow) -> None:
        if not call.is_valid():
            attempt.sock.close()
            raise TargetGone
        sealer = None
        old = attempt.flow
        if isinstance(flow, FastFlow) and (flow.host, flow.source) == (old.host, old.source):
            sealer = self._context.keyring.sealer(flow.peer)
        if sealer is None or not isinstance(flow, FastFlow):
            attempt.sock.close()
            self._try_again(attempt, call, flow, errno.ECONNABORTED)
            return
        attempt.flow = flow
        source = Endpoint(flow.source, attempt.bound_port)
        attempt.unsent = sealer.seal(Record(flow.flow, Kind.DATA, source), flow.host)
        self._attempts.hold(attempt)
