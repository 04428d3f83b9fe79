"""From a decoded call and the facts about its socket to an action. Pure: tables in, action out.

    notification --calls.decode--> SocketCall --decide--> Action --perform--> reply

The order of the tests in each function is the order of design: whose socket is it, is it TCP in
this workload's namespace, what does policy say, what is the path.
"""

from __future__ import annotations

import errno
import os
import socket
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from slim.broker import actions, calls
from slim.broker.endpoints import Address, Endpoint, parse_address, unmapped
from slim.broker.flows import DeniedFlow, FastFlow, Flow, FlowKey, OverlayFlow
from slim.broker.kernel.socket_options import SO_MAX_PACING_RATE, TCP_CLOSE, TCP_LISTEN
from slim.broker.shaping import MAX_PRIORITY

if TYPE_CHECKING:
    from slim.broker.connections import ConnectionRecord
    from slim.broker.kernel.socket_options import SocketFacts
    from slim.broker.listeners import ListenerRecord


@dataclass(slots=True)
class Observed:
    """The socket behind the fd, at the moment of the call."""

    facts: SocketFacts
    is_ours: bool
    """A socket that slimd put there, even if its record is lost."""
    local: Endpoint | None = None
    """What it is bound to (read for connect and getsockname only)."""
    uncopyable: str = ""
    """An option in force that no host socket can have (read for connect and listen only)."""
    v6only: bool = False
    """IPV6_V6ONLY: such a socket cannot connect to a mapped address (read for connect only)."""


class View(Protocol):
    """What decide may look at; one per container."""

    workload_cookie: int

    def is_overlay(self, address: Address) -> bool: ...
    def connection(self, cookie: int) -> ConnectionRecord | None: ...
    def listener(self, cookie: int) -> ListenerRecord | None: ...
    def limited(self, cookie: int) -> ConnectionRecord | None:
        """The record of a socket that policy limits, whoever made it."""
        ...

    def flow(self, key: FlowKey) -> Flow | None: ...
    def is_isolated(self) -> bool:
        """Whether the overlay may be used only where a verdict allows it."""
        ...

    def deny_errno(self) -> int: ...


def decide(
    call: calls.SocketCall, observed: Observed | None, view: View, answered: Flow | None = None
) -> actions.Action:
    """What to do. `answered` is the answer to the question that an earlier AskControl asked."""
    if isinstance(call, calls.CreateEpoll):
        return _create_epoll(call)
    if observed is None:
        # No such fd, or no socket: the kernel knows the right errno.
        return actions.Proceed()
    match call:
        case calls.Connect():
            return _connect(call, observed, view, answered)
        case calls.Accept():
            return _accept(call, observed, view)
        case calls.GetName():
            return _get_name(call, observed, view)
        case calls.Listen():
            return _listen(call, observed, view)
        case calls.Bind():
            return _bind(call, observed, view)
        case calls.FastOpenSend():
            return _fast_open_send(observed, view)
        case calls.GetV6Only():
            return _get_v6only(observed, view)
        case calls.SetLimit():
            return _set_limit(call, observed, view)
        case calls.SetOption() | calls.InterfaceRequest():
            return actions.Return(errno.EPERM) if observed.is_ours else actions.Proceed()


def _connect(
    call: calls.Connect, observed: Observed, view: View, answered: Flow | None
) -> actions.Action:
    facts = observed.facts
    if observed.is_ours:
        record = view.connection(facts.cookie)
        if facts.state == TCP_LISTEN:
            return actions.Return(errno.EISCONN)
        if call.family == socket.AF_UNSPEC:
            return actions.Disconnect(then_proceed=False)
        if record is None:
            return actions.Disconnect(then_proceed=True)
        return actions.ConnectAgain(record)
    destination = call.destination
    if (
        destination is None
        or destination.port == 0
        or not facts.is_tcp
        or facts.netns != view.workload_cookie
        or not view.is_overlay(destination.address)
        or facts.state != TCP_CLOSE
        or not _family_fits(facts.domain, call.family, destination.address)
    ):
        return actions.Proceed()
    source = _bound_address(observed.local)
    if source is not None and not view.is_overlay(source):
        return actions.Proceed()
    key = FlowKey(view.workload_cookie, source, destination)
    flow = answered or view.flow(key)
    match flow:
        case None:
            return actions.AskControl(key)
        case DeniedFlow():
            return actions.Refuse(flow.errno, flow.rule, destination)
        case OverlayFlow():
            return actions.Proceed(flow.reason, flow.rule, destination, flow.shaping)
        case FastFlow():
            return _connect_fast(flow, key, observed, view)


def _connect_fast(flow: FastFlow, key: FlowKey, observed: Observed, view: View) -> actions.Action:
    reason = observed.uncopyable
    if not reason and observed.facts.domain == socket.AF_INET and flow.host.address.version == 6:
        reason = "ipv4-socket-ipv6-underlay"
    if not reason and observed.v6only and flow.host.address.version == 4:
        reason = "ipv6-only-socket-ipv4-underlay"
    if not reason:
        bound = observed.local.port if observed.local else 0
        return actions.ConnectHost(flow, key, bound)
    if not flow.fallback_lawful:
        return actions.Refuse(view.deny_errno(), f"{flow.rule}; {reason}", key.destination)
    return actions.Proceed(reason, flow.rule, key.destination, flow.shaping)


def _accept(call: calls.Accept, observed: Observed, view: View) -> actions.Action:
    listener = view.listener(observed.facts.cookie)
    if listener is None:
        # A host socket that does not listen: what the kernel would say.
        return actions.Return(errno.EINVAL) if observed.is_ours else actions.Proceed()
    if call.flags & ~calls.ACCEPT_FLAGS:
        return actions.Return(errno.EINVAL)
    return actions.TakeConnection(listener)


def _get_name(call: calls.GetName, observed: Observed, view: View) -> actions.Action:
    if not observed.is_ours:
        return actions.Proceed()
    facts = observed.facts
    listener = view.listener(facts.cookie)
    if listener is not None:
        if call.peer:
            return actions.Return(errno.ENOTCONN)
        return actions.TellName(_in_family(listener.local, facts.domain))
    record = view.connection(facts.cookie)
    if call.peer:
        # Not connected any more (RST, refused): natively there is no peer to name.
        if record is None or facts.state == TCP_CLOSE:
            return actions.Return(errno.ENOTCONN)
        return actions.TellName(record.peer_endpoint())
    if record is None:
        # Never a host address.
        unspecified = "::" if facts.domain == socket.AF_INET6 else "0.0.0.0"
        return actions.TellName(Endpoint(parse_address(unspecified), 0))
    return actions.TellName(record.local_endpoint())


def _fast_open_send(observed: Observed, view: View) -> actions.Action:
    facts = observed.facts
    if observed.is_ours:
        # It is connected, or about to be.
        return actions.Return(errno.EISCONN)
    connects = facts.is_tcp and facts.netns == view.workload_cookie and facts.state == TCP_CLOSE
    if connects and view.is_isolated():
        # It would connect on the overlay, unjudged. As where net.ipv4.tcp_fastopen lacks the
        # client's bit: the program connects instead.
        return actions.Return(errno.EOPNOTSUPP)
    return actions.Proceed()


def _get_v6only(observed: Observed, view: View) -> actions.Action:
    if not observed.is_ours:
        return actions.Proceed()
    listener = view.listener(observed.facts.cookie)
    if listener is None or listener.family != socket.AF_INET6:
        return actions.TellV6Only(None)
    return actions.TellV6Only(not listener.dual_stack)


def _set_limit(call: calls.SetLimit, observed: Observed, view: View) -> actions.Action:
    """On the captured socket, never by the program's own call: its fd may be another's by then."""
    record = view.limited(observed.facts.cookie) if observed.facts.is_tcp else None
    shaping = record.shaping if record is not None else None
    option = (call.level, call.option)
    fixed = None if shaping is None else shaping.dscp
    if call.level == socket.SOL_SOCKET and len(call.value) < 4:
        return actions.Return(errno.EINVAL)
    if option == (socket.SOL_SOCKET, SO_MAX_PACING_RATE):
        fixed = None
    elif option == (socket.SOL_SOCKET, socket.SO_PRIORITY):
        number = int.from_bytes(call.value[:4], sys.byteorder, signed=True)
        if not 0 <= number <= MAX_PRIORITY:
            # It takes CAP_NET_ADMIN over the socket's namespace, which a program may have over
            # its own only.
            is_own = record is None and not observed.is_ours
            return actions.Proceed() if is_own else actions.Return(errno.EPERM)
        fixed = None if shaping is None else shaping.priority
    if fixed is not None:
        return actions.Return(0)
    return actions.SetWithinLimits(call.level, call.option, call.value, record)


def _listen(call: calls.Listen, observed: Observed, view: View) -> actions.Action:
    facts = observed.facts
    listener = view.listener(facts.cookie)
    if listener is not None:
        return actions.ListenAgain(listener, call.backlog)
    if observed.is_ours:
        return actions.Return(errno.EINVAL)
    if (
        not facts.is_tcp
        or facts.netns != view.workload_cookie
        # Listening already: a call that a signal interrupted between the overlay's listen and the
        # swap comes again, or it listened before there was a filter.
        or facts.state not in (TCP_CLOSE, TCP_LISTEN)
        or observed.uncopyable
    ):
        return actions.Proceed()
    address = _bound_address(observed.local)
    if address is not None and not view.is_overlay(address):
        return actions.Proceed()
    return actions.ListenHost(call.backlog)


def _bind(call: calls.Bind, observed: Observed, view: View) -> actions.Action:
    if observed.is_ours:
        # Bound already, as any connected or listening socket is.
        return actions.Return(errno.EINVAL)
    if (
        call.local is None
        or call.local.port == 0
        or not observed.facts.is_tcp
        or observed.facts.netns != view.workload_cookie
    ):
        return actions.Proceed()
    return actions.VacatePort(call.local.port)


def _create_epoll(call: calls.CreateEpoll) -> actions.Action:
    if call.flags & ~os.O_CLOEXEC:
        # Negative sizes and unknown flags: epoll_create(2).
        return actions.Return(errno.EINVAL)
    return actions.MakeEpoll(call.flags)


def _bound_address(local: Endpoint | None) -> Address | None:
    return None if local is None or local.address.is_unspecified else local.address


def _family_fits(domain: int, family: int, destination: Address) -> bool:
    # A mismatch is EAFNOSUPPORT or EINVAL, and the kernel's to report.
    if domain == socket.AF_INET:
        return family == socket.AF_INET and destination.version == 4
    return family == socket.AF_INET6


def _in_family(endpoint: Endpoint, domain: int) -> Endpoint:
    if domain == socket.AF_INET:
        return Endpoint(unmapped(endpoint.address), endpoint.port)
    return endpoint
