"""Connections that a program takes: admission inside a trapped accept, and who waits.

slimd accepts only inside the program's own accept, so backlog, readiness and EAGAIN stay the
kernel's. What the program polls is the host listener; three things may be ready behind it:

- a host connection with its record in hand: admitted, or reset;
- a host connection whose record is not complete yet: parked, bounded, with a deadline;
- something else (a parked one that completed, a plain peer on the retained overlay listener):
  announced by a wake (wakes.py). While something else is ready, exactly one is on its way.
"""

from __future__ import annotations

import errno
import logging
import os
import select
import socket
from typing import TYPE_CHECKING

from slim.broker.accept_state import AcceptState, Parked, Ready, Waiter
from slim.broker.admission.preamble import RECORD_BYTES, RecordRefused
from slim.broker.endpoints import Endpoint, from_packed16
from slim.broker.errors import SyscallError, TargetGone
from slim.broker.kernel import sockaddr
from slim.broker.kernel.epoll import EPOLLET, EPOLLIN, EPOLLONESHOT
from slim.broker.kernel.socket_options import (
    TCP_CLOSE,
    read_cookie,
    reset,
    tcp_state,
    timeout_s,
)
from slim.broker.limiting import limit, mark
from slim.broker.parking import Parking
from slim.broker.perform import capture, write_name
from slim.broker.wakes import Wakes

if TYPE_CHECKING:
    from slim.broker.calls import Accept
    from slim.broker.context import TrapContext
    from slim.broker.listeners import ListenerRecord
    from slim.broker.supervisor import PendingCall

log = logging.getLogger(__name__)

ACCEPTS_PER_TURN = 64
"""Refused connections that one trapped accept discards before others get their turn."""


class Acceptor:
    def __init__(self, context: TrapContext) -> None:
        self._context = context
        self._states: dict[int, AcceptState] = {}
        self._parking = Parking(
            context.loop, self._on_parked, lambda sock: self._refuse(sock, "silent")
        )
        self._wakes = Wakes(context, self._states, self._serve_held)

    # --- listeners come and go ----------------------------------------------------------------

    def add_listener(self, listener: ListenerRecord, retained: socket.socket | None) -> None:
        """A listener is live; takes the retained overlay listener."""
        state = AcceptState(listener, retained)
        self._states[listener.cookie] = state
        if retained is not None:
            retained.setblocking(False)
            state.retained_token = self._context.loop.watch(
                retained.fileno(), lambda _: self._wakes.send(state), EPOLLIN | EPOLLONESHOT
            )

    def remove_listener(self, cookie: int) -> None:
        """The program's last copy is closed: close everything that waited on it."""
        state = self._states.pop(cookie, None)
        if state is None:
            return
        loop = self._context.loop
        if state.retained is not None:
            loop.unwatch(state.retained.fileno(), state.retained_token)
            state.retained.close()
            state.retained = None
        for parked in [*state.parked]:
            self._parking.leave(state, parked)
            reset(parked.sock)
        for ready in state.ready:
            reset(ready.sock)
        state.ready.clear()
        for waiter in state.waiters:
            # Natively a held accept keeps its listener open; here the file is already gone.
            waiter.fail(errno.EINVAL)
        state.waiters.clear()
        self._context.loop.forget(state.watch_token)
        self._wakes.end(state)
        if state.retry is not None:
            state.retry.cancel()

    def judge_again(self, workload: int, dropped: frozenset[int]) -> None:
        """Reset who was admitted, by these flows or as plain peers, and is not accepted yet."""
        for state in self._states.values():
            for ready in state.take_refused(workload, dropped, self._context.admits_plain):
                self._refuse(ready.sock, "policy-changed")

    # --- accept() -----------------------------------------------------------------------------

    def accept(
        self,
        call: PendingCall,
        asked: Accept,
        listener: ListenerRecord,
        sock: socket.socket,
        *,
        nonblocking: bool,
    ) -> None:
        """Answer a trapped accept, now or when something comes; borrows `sock`, the listener."""
        state = self._states.get(listener.cookie)
        if state is None:
            call.fail(errno.EINVAL)
            return
        waiter = Waiter(call, asked)
        if (not state.waiters or nonblocking) and self._serve(state, waiter, sock):
            return
        if nonblocking:
            call.fail(errno.EAGAIN)
            return
        limit = timeout_s(sock, socket.SO_RCVTIMEO)
        if limit is not None:
            waiter.timer = self._context.loop.call_later(limit, lambda: state.expire(waiter))
        state.drop_held(call.tid)
        state.waiters.append(waiter)
        self._watch(state, sock)

    def _serve(self, state: AcceptState, waiter: Waiter, sock: socket.socket) -> bool:
        """Give the waiter a connection; False when none is ready."""
        for _ in range(ACCEPTS_PER_TURN):
            if state.ready:
                self._deliver(state, waiter, state.ready.popleft())
                self._wakes.settle(state)
                return True
            taken = self._take(state, sock)
            if taken is None:
                return False
            if isinstance(taken, Ready):
                self._deliver(state, waiter, taken)
                return True
        # More may be queued, and no edge will tell: look again after everybody had a turn, and
        # let a program that polls edges of its own hear of it.
        self._context.loop.call_later(0, lambda: self._on_acceptable(state))
        self._wakes.send(state)
        return False

    def _take(self, state: AcceptState, sock: socket.socket) -> Ready | bool | None:
        """Accept one host connection: Ready; True: it was not for the program; None: none there."""
        # The file may be a blocking one, and its flags are the program's: look before accept.
        # poll, not select: strangers can drive fd numbers beyond FD_SETSIZE.
        look = select.poll()
        look.register(sock, select.POLLIN)
        if not look.poll(0):
            return None
        try:
            accepted, name = sock.accept()
        except BlockingIOError:
            return None
        except OSError as error:
            if error.errno in (errno.ECONNABORTED, errno.EPROTO):
                return True
            raise
        peer = self._context.sockets.open_accepted(
            accepted, state.listener.workload, sockaddr.from_python(name)
        )
        return self._examine(state, Parked(accepted, peer, b"")) or True

    def _examine(self, state: AcceptState, parked: Parked) -> Ready | None:
        """Read what is missing of the record, and judge it when it is whole. Takes `parked`."""
        try:
            chunk = parked.sock.recv(RECORD_BYTES - len(parked.received), socket.MSG_DONTWAIT)
        except BlockingIOError:
            self._parking.park(state, parked)
            return None
        except OSError:
            chunk = b""
        if not chunk:
            self._refuse(parked.sock, "silent")
            return None
        parked.received += chunk
        if len(parked.received) < RECORD_BYTES:
            self._parking.park(state, parked)
            return None
        return self._judge(state, parked)

    def _judge(self, state: AcceptState, parked: Parked) -> Ready | None:
        listener = state.listener
        try:
            record, flow = self._context.keyring.admit(
                parked.received, parked.address.address, listener
            )
        except RecordRefused as refusal:
            log.debug("listener %s: connection refused: %s", listener.local, refusal)
            reset(parked.sock)
            return None
        if flow is None:
            parked.sock.close()
            return self._consume_wake(state)
        if tcp_state(parked.sock) == TCP_CLOSE:
            # Reset by its own side while it waited: nobody is there any more.
            parked.sock.close()
            return None
        port = record.source.port or parked.address.port
        return Ready(
            parked.sock,
            Endpoint(record.source.address, port),
            Endpoint(from_packed16(flow.destination), listener.port),
            "fast",
            "",
            flow.rule,
            flow.peer,
            parked.address,
            flow=flow.flow,
            shaping=flow.shaping,
            peer_rate=flow.peer_rate,
        )

    def _refuse(self, sock: socket.socket, reason: str) -> None:
        self._context.keyring.refused[reason] += 1
        reset(sock)

    def _deliver(self, state: AcceptState, waiter: Waiter, ready: Ready) -> None:
        """Give the connection to the program; TargetGone puts it back at the head.

        The fd first, then the answer. A thread that leaves its call in between has the fd without
        knowing it; whoever accepts next there is told its number.
        """
        call, asked = waiter.call, waiter.asked
        if waiter.timer is not None:
            waiter.timer.cancel()
        try:
            if asked.address:
                write_name(call, asked.address, asked.length, ready.peer, state.listener.family)
            cookie = read_cookie(ready.sock)
            if asked.flags & socket.SOCK_NONBLOCK:
                os.set_blocking(ready.sock.fileno(), False)
            self._record(call, cookie, ready)
            self._context.hand.delivery(call, cookie)
            if ready.number is None or not _is_there(call, ready.number, cookie):
                cloexec = bool(asked.flags & socket.SOCK_CLOEXEC)
                ready.number = call.add_fd(ready.sock.fileno(), cloexec=cloexec)
            call.finish(ready.number)
        except TargetGone:
            self._put_back(state, ready)
            raise
        except SyscallError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.EBADF):
                # No free number in the program: natively the connection stays in the queue.
                self._put_back(state, ready)
                call.fail(errno.EMFILE)
            else:
                # EFAULT and EINVAL: the kernel loses the connection too (accept(2)).
                reset(ready.sock)
                call.fail(error.errno or errno.EFAULT)
            return
        finally:
            self._context.hand.nothing()
        ready.sock.close()

    def _put_back(self, state: AcceptState, ready: Ready) -> None:
        state.ready.appendleft(ready)
        self._wakes.settle(state)

    def _record(self, call: PendingCall, cookie: int, ready: Ready) -> None:
        if flow := self._context.keyring.flow(ready.flow):
            # Policy may have changed while the connection waited.
            ready.shaping, ready.peer_rate = flow.shaping, flow.peer_rate
        self._context.record(
            call,
            cookie,
            direction="in",
            local=ready.local,
            peer=ready.peer,
            path=ready.path,
            host_peer=ready.host_peer,
            peer_host=ready.peer_host,
            reason=ready.reason,
            rule=ready.rule,
            shaping=ready.shaping,
            peer_rate=ready.peer_rate,
        )
        limit(ready.sock, ready.shaping, ready.peer_rate)
        if ready.path == "fast":
            mark(ready.sock, call.workload.state.mark)
            os.fchown(ready.sock.fileno(), call.workload.uid, -1)
            self._context.sockets.seal_connected(
                ready.sock, call.workload.cookie, ready.local, ready.peer
            )

    # --- plain peers --------------------------------------------------------------------------

    def _take_plain(self, state: AcceptState) -> Ready | None:
        """Accept from the retained overlay listener."""
        retained = state.retained
        if retained is None:
            return None
        try:
            accepted, name = retained.accept()
        except OSError:
            return None
        peer = sockaddr.from_python(name)
        if not self._context.admits_plain(state.listener.workload, peer.address):
            self._refuse(accepted, "plain-peer-of-isolated-workload")
            return None
        local = sockaddr.from_python(accepted.getsockname())
        return Ready(accepted, peer, local, "fallback", "plain-peer", "", "", None)

    def _consume_wake(self, state: AcceptState) -> Ready | None:
        """A wake was accepted: what did it announce? Whatever else is ready wakes anew."""
        group = self._wakes.group(state)
        for member in group:
            self._wakes.end(member)
        found = None
        for member in group:
            if found is None:
                found = member.ready.popleft() if member.ready else self._take_plain(member)
            if member.retained is not None:
                # Level-triggered: fires again at once if more is waiting.
                self._context.loop.rearm(
                    member.retained.fileno(), member.retained_token, EPOLLIN | EPOLLONESHOT
                )
            self._wakes.settle(member)
        return found

    def _serve_held(self, state: AcceptState) -> None:
        """Nobody can be woken: give plain peers to those who are held in accept."""
        while state.waiters:
            ready = self._take_plain(state)
            if ready is None:
                return
            waiter = state.waiters.popleft()
            try:
                self._deliver(state, waiter, ready)
            except TargetGone:
                continue

    # --- parked connections -------------------------------------------------------------------

    def _on_parked(self, state: AcceptState, parked: Parked) -> None:
        ready = self._examine(state, parked)
        if ready is not None:
            state.ready.append(ready)
            self._wakes.send(state)

    # --- held accepts -------------------------------------------------------------------------

    def _watch(self, state: AcceptState, sock: socket.socket) -> None:
        """Hear of new connections from now on; the registration ends with the program's file.

        Edge-triggered: nobody is woken twice for one connection, and what is left in the queue
        is found by the next accept itself.
        """
        if not state.watch_token:
            state.watch_token = self._context.loop.watch(
                sock.fileno(), lambda _: self._on_acceptable(state), EPOLLIN | EPOLLET
            )

    def _on_acceptable(self, state: AcceptState) -> None:
        """The listener is readable: serve who waits, first come first served."""
        while state.waiters:
            waiter = state.waiters[0]
            if not waiter.call.is_valid():
                # Interrupted; if the call comes again it is a new notification.
                state.waiters.popleft()
                continue
            try:
                with capture(waiter.call.tid, waiter.asked.fd) as sock:
                    if read_cookie(sock) != state.listener.cookie:
                        raise OSError(errno.EBADF, "the fd was closed or replaced")
                    if not self._serve(state, waiter, sock):
                        return
                state.waiters.popleft()
            except TargetGone:
                state.waiters.popleft()
            except OSError as error:
                state.waiters.popleft()
                waiter.fail(error.errno or errno.EBADF)


def _is_there(call: PendingCall, fd: int, cookie: int) -> bool:
    """Whether the caller has that socket under that number."""
    try:
        with capture(call.tid, fd) as sock:
            return read_cookie(sock) == cookie
    except OSError:
        return False
