"""What happened: the one vocabulary of the log, the tools, metrics and plugins (slim_observe).

Immutable facts about the past, in text and numbers, since people and scripts read them: an event
as JSON is the struct's fields beside `event`, its kind. Published through observing.py; consumers
never take part in what they hear of.
"""

from __future__ import annotations

import logging
import re
import time as clock
from typing import TypeAlias

import msgspec

EVENTS_VERSION = 1
"""Raised when a kind or a field is renamed, removed or changes its meaning; new ones may come."""


def _kind_of(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "-", name).lower()


class AnyEvent(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag=_kind_of):
    """Base of all events: ConnectionOpened is `connection-opened` outside."""

    time: float = msgspec.field(default_factory=clock.time)
    """Seconds since 1970, by this host's clock."""


class ConnectionEvent(AnyEvent, frozen=True, kw_only=True):
    """What events of one connection have in common; the fields are those of admin's Connection."""

    direction: str
    workload: str
    pid: int
    overlay_local: str
    overlay_peer: str
    host_peer: str
    peer_host: str
    path: str
    reason: str
    verdict: str
    rule: str
    cookie: int


class ConnectionOpened(ConnectionEvent, frozen=True, kw_only=True):
    """A program got a connection, of whichever path, or was refused one (`path` is denied)."""

    setup_us: int
    """From the trapped call, as slimd received it, until the socket was in its place; 0: unknown.
    Of an outgoing connection without the peer's part of the handshake."""


class ConnectionClosed(ConnectionEvent, frozen=True, kw_only=True):
    """It is over for the program; told up to five seconds later."""

    duration_s: float


class ConnectionsCut(AnyEvent, frozen=True, kw_only=True):
    """slimd ended connections: by policy, limit, administrator, or because the peer did."""

    why: str
    rule: str
    count: int


class ListenerEvent(AnyEvent, frozen=True, kw_only=True):
    """What events of one listener have in common."""

    workload: str
    overlay_local: str
    host_local: str
    cookie: int


class ListenerUp(ListenerEvent, frozen=True, kw_only=True):
    """A program listens."""


class ListenerGone(ListenerEvent, frozen=True, kw_only=True):
    """The last copy of the listener is closed."""


class ContainerStarted(AnyEvent, frozen=True, kw_only=True):
    workload: str
    container: str
    pid: int
    is_bystander: bool
    """It is on no overlay: its calls all go on natively."""


class ContainerEnded(AnyEvent, frozen=True, kw_only=True):
    workload: str
    container: str


class PeerConnected(AnyEvent, frozen=True, kw_only=True):
    """The control channel to another host's slimd is up."""

    peer_host: str


class PeerDisconnected(AnyEvent, frozen=True, kw_only=True):
    peer_host: str
    reason: str


class PeerFailed(AnyEvent, frozen=True, kw_only=True):
    """A channel could not be opened."""

    endpoint: str
    reason: str


class PathFailed(AnyEvent, frozen=True, kw_only=True):
    """A probe or a connection did not get through to a host endpoint."""

    host_peer: str
    reason: str


class SourceDenied(AnyEvent, frozen=True, kw_only=True):
    """Ingress policy of a workload of this host refused a source on another, or this one."""

    workload: str
    overlay_local: str
    peer_host: str
    source_workload: str
    source_address: str
    rule: str


class WouldDeny(AnyEvent, frozen=True, kw_only=True):
    """A flow was allowed that `rule` would deny, if it were not only watched."""

    flow: str
    rule: str


class PolicyChanged(AnyEvent, frozen=True, kw_only=True):
    epoch: int


class ConfigRefused(AnyEvent, frozen=True, kw_only=True):
    """A reload found mistakes and changed nothing."""

    mistakes: int
    reason: str
    """The first of them."""


class TrapsConnected(AnyEvent, frozen=True, kw_only=True):
    """The trap process is there: for the first time, or again."""

    pid: int


class PluginFailed(AnyEvent, frozen=True, kw_only=True):
    plugin: str
    hook: str
    reason: str


class EventsLost(AnyEvent, frozen=True, kw_only=True):
    """So many events in this place of the order were not kept: too many came, or too few asked."""

    count: int


Event: TypeAlias = (
    ConnectionOpened
    | ConnectionClosed
    | ConnectionsCut
    | ListenerUp
    | ListenerGone
    | ContainerStarted
    | ContainerEnded
    | PeerConnected
    | PeerDisconnected
    | PeerFailed
    | PathFailed
    | SourceDenied
    | WouldDeny
    | PolicyChanged
    | ConfigRefused
    | TrapsConnected
    | PluginFailed
    | EventsLost
)
KINDS: dict[str, type[AnyEvent]] = {_kind_of(kind.__name__): kind for kind in Event.__args__}


def kind_of(event: AnyEvent) -> str:
    """As in JSON: `connection-opened`."""
    kind = event.__struct_config__.tag
    assert isinstance(kind, str)
    return kind


def level_of(event: AnyEvent) -> int:
    """How much an operator wants to hear of it, as a level of logging."""
    match event:
        case PathFailed() | PeerFailed() | PluginFailed() | ConfigRefused() | EventsLost():
            return logging.WARNING
        case ConnectionOpened(path="denied"):
            return logging.INFO
        case ConnectionEvent() | ListenerEvent():
            return logging.DEBUG
        case _:
            return logging.INFO


def describe(event: Event) -> str:
    """The event in words, without its time and kind."""
    match event:
        case ConnectionOpened():
            took = f", set up in {event.setup_us} us" if event.setup_us else ""
            return f"{_ends(event)} {_path(event)}{_rule(event.rule)}{took}"
        case ConnectionClosed():
            return f"{_ends(event)} {_path(event)} after {event.duration_s:.1f} s"
        case ConnectionsCut():
            return f"{event.count} connections cut: {event.rule} ({event.why})"
        case ListenerUp():
            return f"{event.workload} listens at {event.overlay_local}, behind {event.host_local}"
        case ListenerGone():
            return f"{event.workload} listens at {event.overlay_local} no more"
        case ContainerStarted():
            where = ", on no overlay" if event.is_bystander else ""
            return f"container {event.container}: workload {event.workload}, pid {event.pid}{where}"
        case ContainerEnded():
            return f"container {event.container} of workload {event.workload} ended"
        case PeerConnected():
            return f"channel to {event.peer_host} is up"
        case PeerDisconnected():
            return f"channel to {event.peer_host} ended: {event.reason}"
        case PeerFailed():
            return f"channel to {event.endpoint} failed: {event.reason}"
        case PathFailed():
            return f"host path to {event.host_peer} failed: {event.reason}"
        case SourceDenied():
            source = f"{event.source_workload} ({event.source_address}) on {event.peer_host}"
            return f"{source} may not reach {event.overlay_local}{_rule(event.rule)}"
        case WouldDeny():
            return f"{event.flow} would be denied: {event.rule}"
        case PolicyChanged():
            return f"policy epoch {event.epoch} is in force"
        case ConfigRefused():
            return f"not reloaded, {event.mistakes} mistakes: {event.reason}"
        case TrapsConnected():
            return f"the trap process is connected, pid {event.pid}"
        case PluginFailed():
            return f"plugin {event.plugin!r}: {event.hook}: {event.reason}"
        case EventsLost():
            return f"{event.count} events were lost here"


def _ends(event: ConnectionEvent) -> str:
    arrow = "<-" if event.direction == "in" else "->"
    own = event.overlay_local or "?"
    return f"{event.workload} {own} {arrow} {event.overlay_peer or '?'}"


def _path(event: ConnectionEvent) -> str:
    return f"{event.path} ({event.reason})" if event.reason else event.path


def _rule(rule: str) -> str:
    return f" by {rule}" if rule else ""
