"""Wakes: slimd's own sealed connections to a host listener, so that whoever polls it looks.

A wake says that something else is ready: a connection that was parked, or a plain peer on the
retained overlay listener. At most one is in the accept queue of a listener, or of its
SO_REUSEPORT group, whose members the kernel picks from.
"""

from __future__ import annotations

import errno
import logging
import socket
from typing import TYPE_CHECKING

from slim.broker.admission.keyring import WAKE_FLOW
from slim.broker.admission.preamble import Kind, Record
from slim.broker.endpoints import Endpoint
from slim.broker.kernel import sockaddr
from slim.broker.kernel.epoll import EPOLLIN, EPOLLONESHOT
from slim.broker.kernel.socket_options import (
    TCP_CLOSE,
    TCP_FASTOPEN_NO_COOKIE,
    TCP_SYN_SENT,
    reset,
    tcp_state,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from slim.broker.accept_state import AcceptState
    from slim.broker.context import TrapContext

log = logging.getLogger(__name__)

RETRY_S = 0.1
RESET_RETRY_S = 1.0
_WAKE_FLAGS = socket.MSG_FASTOPEN | socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL


class Wakes:
    """Sends and ends wakes. `states` are all listeners; `on_lost` serves who cannot be woken."""

    def __init__(
        self,
        context: TrapContext,
        states: dict[int, AcceptState],
        on_lost: Callable[[AcceptState], None],
    ) -> None:
        self._context = context
        self._states = states
        self._on_lost = on_lost

    def group(self, state: AcceptState) -> list[AcceptState]:
        """The listeners that share address and port by SO_REUSEPORT; mostly just the one.

        The kernel gives a connection, and so a wake, to any member of the group: what is ready
        belongs to all of them.
        """
        own = state.listener
        return [
            other
            for other in self._states.values()
            if (other.listener.workload, other.listener.host_port) == (own.workload, own.host_port)
        ]

    def send(self, state: AcceptState) -> None:
        """Make the host listener readable, unless a wake is on its way already."""
        if any(member.wake is not None for member in self.group(state)):
            return
        try:
            state.wake = self._connect(state)
        except OSError as error:
            log.warning("listener %s: wake not sent: %s", state.listener.local, error)
            self._try_later(state, RETRY_S)
            return
        reached = tcp_state(state.wake)
        if reached in (TCP_SYN_SENT, TCP_CLOSE):
            # Over loopback a handshake is done at once: this one was dropped, or reset.
            self._context.counters["wakes_lost"] += 1
            log.error(
                "listener %s: plain peers wait, since a firewall of this host drops the host "
                "ports on its own loopback: accept them on lo",
                state.listener.local,
            )
            if reached == TCP_CLOSE:
                # A dropped one is sent again by the kernel, with back-off; a reset one is over.
                self.end(state)
                self._try_later(state, RESET_RETRY_S)
            self._on_lost(state)

    def settle(self, state: AcceptState) -> None:
        """While something is ready there is a wake."""
        if state.ready:
            self.send(state)

    def end(self, state: AcceptState) -> None:
        """The wake was accepted, or its listener is gone."""
        if state.wake is not None:
            # With RST: a wake per plain peer must leave no TIME_WAIT behind.
            reset(state.wake)
            state.wake = None

    def _connect(self, state: AcceptState) -> socket.socket:
        host = state.listener.host
        domain = socket.AF_INET6 if host.address.version == 6 else socket.AF_INET
        source = Endpoint(host.address, 0)
        record = self._context.keyring.wake_sealer().seal(
            Record(WAKE_FLOW, Kind.WAKE, source), host
        )
        address = sockaddr.for_python(host, domain)
        wake = socket.socket(domain, socket.SOCK_STREAM)
        try:
            wake.setblocking(False)
            wake.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN_NO_COOKIE, 1)
            wake.bind(sockaddr.for_python(source, domain))
            try:
                wake.sendto(record, _WAKE_FLAGS, address)
            except OSError as error:
                if error.errno != errno.EOPNOTSUPP:
                    raise
                # net.ipv4.tcp_fastopen lacks bit 1; over loopback the handshake is done at once.
                wake.connect_ex(address)
                wake.send(record, socket.MSG_NOSIGNAL)
        except OSError:
            wake.close()
            raise
        return wake

    def _try_later(self, state: AcceptState, delay_s: float) -> None:
        if state.retry is None:
            state.retry = self._context.loop.call_later(delay_s, lambda: self._look_again(state))

    def _look_again(self, state: AcceptState) -> None:
        """Is anything still ready that nobody was told of?"""
        state.retry = None
        if self._states.get(state.listener.cookie) is not state:
            return
        self.settle(state)
        if state.retained is not None:
            # Level-triggered: fires at once if a plain peer waits, and that sends a wake.
            self._context.loop.rearm(
                state.retained.fileno(), state.retained_token, EPOLLIN | EPOLLONESHOT
            )
