"""Listeners that a program makes: the host listener behind the fd, the overlay one retained.

Also the ends of it: the program's last copy closed (ListenerDeaths), and a bind to a port whose
retained listener must be gone first.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
import time
from typing import TYPE_CHECKING

import msgspec

from slim.broker.admission.keyring import boottime
from slim.broker.endpoints import Address, Endpoint, packed16
from slim.broker.errors import TargetGone
from slim.broker.kernel import sockaddr
from slim.broker.kernel.pidfd import is_close_on_exec
from slim.broker.kernel.sock_diag import ListenerDeaths, find_tcp
from slim.broker.kernel.socket_options import read_cookie
from slim.broker.listeners import ListenerRecord
from slim.broker.perform import (
    find_fds,
    find_registrations,
    local_endpoint,
    make_alike,
    mover,
)

if TYPE_CHECKING:
    from slim.broker.accepting import Acceptor
    from slim.broker.calls import Listen
    from slim.broker.context import TrapContext
    from slim.broker.pipeline import Observed
    from slim.broker.supervisor import PendingCall
    from slim.broker.workloads import Workload

log = logging.getLogger(__name__)

MIN_BACKLOG = 1024
"""A few silent strangers must not fill the queue of a program that asked for a small one."""
DEFER_ACCEPT_S = 1
_PORT_TRIES = 256


class Listening:
    """Makes host listeners, and notices their end. Owns the watch on listener deaths."""

    def __init__(self, context: TrapContext, acceptor: Acceptor) -> None:
        self._context = context
        self._acceptor = acceptor
        self._dropping: dict[tuple[int, int], int] = {}
        """(workload, port) -> retained listeners that the keeper was told to close, unconfirmed."""
        self._blocked: dict[tuple[int, int], list[PendingCall]] = {}
        self._deaths = ListenerDeaths(context.ports)
        context.loop.watch(self._deaths.fileno(), lambda _: self.collect_deaths())

    # --- listen() -----------------------------------------------------------------------------

    def listen_host(
        self,
        call: PendingCall,
        asked: Listen,
        observed: Observed,
        overlay: socket.socket,
    ) -> None:
        """Listen on the overlay, then put a host listener behind the fd; takes `overlay`."""
        domain = observed.facts.domain
        with overlay:
            try:
                overlay.listen(asked.backlog)
            except OSError as error:
                call.fail(error.errno or errno.EINVAL)
                return
            local = local_endpoint(overlay)
            if not self._is_brokered(call.workload, local.address):
                call.fail(0)
                return
            host, reason = self._make_host_listener(call, asked, observed, overlay, local)
            if host is None:
                self._context.counters[f"listen_overlay_{reason}"] += 1
                log.info("%s stays on the overlay: %s", local, reason)
                call.fail(0)
                return
            with host:
                # Published before the swap: a successor of this process must know the socket.
                listener = self._publish(call, domain, local, overlay, host)
                try:
                    self._context.sockets.seal_listener(host, call.workload.cookie, local)
                    self._swap_in(call, asked.fd, overlay, host)
                except (TargetGone, OSError):
                    self._ended(listener.cookie)
                    raise
        call.fail(0)

    def listen_again(self, call: PendingCall, sock: socket.socket, backlog: int) -> None:
        """listen() on a host listener: nginx does it on every start."""
        sock.listen(max(backlog, MIN_BACKLOG))
        call.fail(0)

    def _is_brokered(self, workload: Workload, address: Address) -> bool:
        return address.is_unspecified or workload.is_overlay(address)

    def _make_host_listener(
        self,
        call: PendingCall,
        asked: Listen,
        observed: Observed,
        overlay: socket.socket,
        local: Endpoint,
    ) -> tuple[socket.socket | None, str]:
        """A listening host socket with the program's options; or None and why not."""
        context, domain = self._context, observed.facts.domain
        address = context.host_address(domain)
        if address is None:
            return None, "ipv4-socket-ipv6-underlay"
        host, refused = make_alike(overlay, domain, call.workload, context.sockets, listener=True)
        if refused:
            host.close()
            return None, refused
        reuse_port = overlay.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT)
        try:
            host.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            host.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, reuse_port)
            host.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, DEFER_ACCEPT_S)
            if domain == socket.AF_INET6:
                host.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            port = self._bind(host, domain, call.workload.cookie, address, local)
            if port is None:
                host.close()
                return None, "host-ports-exhausted"
            host.listen(max(asked.backlog, MIN_BACKLOG))
        except OSError:
            host.close()
            raise
        return host, ""

    def _bind(
        self,
        host: socket.socket,
        domain: int,
        workload: int,
        address: Address,
        local: Endpoint,
    ) -> int | None:
        packed = packed16(local.address)
        ports = self._context.host_ports
        for tries, port in enumerate(ports.candidates(workload, packed, local.port, boottime())):
            if tries >= _PORT_TRIES:
                break
            try:
                host.bind(sockaddr.for_python(Endpoint(address, port), domain))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                continue
            ports.take(port, workload, packed, local.port)
            return port
        return None

    def _swap_in(
        self, call: PendingCall, fd: int, overlay: socket.socket, host: socket.socket
    ) -> None:
        call.ensure_valid()
        inode = os.fstat(overlay.fileno()).st_ino
        registrations = find_registrations(call, fd)
        hand = self._context.hand
        hand.swap(call, fd, inode, read_cookie(host), registrations, None)
        try:
            call.replace(host.fileno(), fd, cloexec=is_close_on_exec(call.tid, fd))
            if registrations:
                mover().add(call.tid, fd, registrations)
            # Listeners are few and long-lived: a scan for duplicates costs little here.
            for other in find_fds(call.tid, inode):
                call.replace(host.fileno(), other, cloexec=is_close_on_exec(call.tid, other))
        finally:
            hand.nothing()

    def _publish(
        self,
        call: PendingCall,
        domain: int,
        local: Endpoint,
        overlay: socket.socket,
        host: socket.socket,
    ) -> ListenerRecord:
        context = self._context
        at_host = local_endpoint(host)
        dual_stack = domain == socket.AF_INET6 and not overlay.getsockopt(
            socket.IPPROTO_IPV6, socket.IPV6_V6ONLY
        )
        listener = ListenerRecord(
            cookie=read_cookie(host),
            workload=call.workload.cookie,
            family=domain,
            address=packed16(local.address),
            dual_stack=dual_stack,
            port=local.port,
            host_address=packed16(at_host.address),
            host_port=at_host.port,
            pid=call.tid,
            created=time.time(),
        )
        retained = socket.socket(
            domain, socket.SOCK_STREAM, socket.IPPROTO_TCP, fileno=os.dup(overlay.fileno())
        )
        context.listeners.add(listener)
        context.keeper.store(
            retained_name(listener.cookie),
            msgspec.msgpack.encode(listener),
            (retained.fileno(),),
        )
        self._acceptor.add_listener(listener, retained)
        context.control.listener_up(listener)
        log.debug("%s listens at %s", local, at_host)
        return listener

    # --- the end of a listener ----------------------------------------------------------------

    def collect_deaths(self) -> None:
        """Handle every listener whose last copy was closed since the last look."""
        for cookie in self._deaths.receive():
            self._ended(cookie)
        if self._deaths.overflowed:
            self._deaths.overflowed = False
            self.check_all()

    def check_all(self) -> None:
        """Look every listener up; for start-up and after lost events."""
        for listener in self._context.listeners:
            if not self._is_alive(listener):
                self._ended(listener.cookie)

    def _is_alive(self, listener: ListenerRecord) -> bool:
        return find_tcp(listener.cookie, listener.host, None) is not None

    def _ended(self, cookie: int) -> None:
        context = self._context
        listener = context.listeners.get(cookie)
        if listener is None:
            return
        context.listeners.forget(cookie)
        context.connections.forget(cookie)
        if not context.listeners.on_port(listener.workload, listener.port):
            context.host_ports.release(listener.host_port, boottime())
        self._acceptor.remove_listener(cookie)
        key = (listener.workload, listener.port)
        self._dropping[key] = self._dropping.get(key, 0) + 1
        context.keeper.drop(retained_name(cookie), lambda: self._dropped(key))
        context.control.listener_gone(listener.workload, cookie)

    # --- bind(), and connect() over the overlay -----------------------------------------------

    def vacate(self, call: PendingCall, workload: int, port: int) -> None:
        """Let a call go on once no retained listener of a dead program holds the port there."""
        self.collect_deaths()
        for listener in self._context.listeners.on_port(workload, port):
            # The event may still be on its way: the listener is freed after an RCU grace period.
            if not self._is_alive(listener):
                self._ended(listener.cookie)
        key = (workload, port)
        if self._dropping.get(key):
            self._blocked.setdefault(key, []).append(call)
        else:
            call.proceed()

    def go_over_overlay(self, call: PendingCall, destination: Endpoint) -> None:
        """Let connect() go on there; to a listener of this host that has ended, it is refused."""
        workload = self._context.owners.get(destination.address)
        if workload is None:
            call.proceed()
        else:
            self.vacate(call, workload, destination.port)

    def _dropped(self, key: tuple[int, int]) -> None:
        self._dropping[key] -= 1
        if self._dropping[key] > 0:
            return
        del self._dropping[key]
        for call in self._blocked.pop(key, []):
            with contextlib.suppress(TargetGone):
                call.proceed()


def retained_name(cookie: int) -> str:
    """The keeper's name for the overlay listener behind a host listener."""
    return f"retained/{cookie}"
