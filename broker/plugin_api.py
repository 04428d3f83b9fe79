"""The names a plugin may import from Slim; everything else may change without notice."""

from __future__ import annotations

import pluggy

from slim.broker.decisions import PLAIN_PEER, Direction, FlowRequest, Identity, Verdict
from slim.broker.discovery import DiscoveryBackend, DiscoveryContext, Located
from slim.broker.encryption import KEY_BYTES, NONCE_BYTES, TAG_BYTES, EncryptionBackend
from slim.broker.endpoints import (
    Address,
    Endpoint,
    Network,
    PortRange,
    contains_any,
    from_packed16,
    named_ports,
    packed16,
    parse_address,
)
from slim.broker.errors import ConfigError, PluginError
from slim.broker.events import (
    KINDS,
    ConfigRefused,
    ConnectionClosed,
    ConnectionEvent,
    ConnectionOpened,
    ConnectionsCut,
    ContainerEnded,
    ContainerStarted,
    Event,
    EventsLost,
    ListenerGone,
    ListenerUp,
    PathFailed,
    PeerConnected,
    PeerDisconnected,
    PeerFailed,
    PluginFailed,
    PolicyChanged,
    SourceDenied,
    TrapsConnected,
    WouldDeny,
    describe,
    kind_of,
)
from slim.broker.hookspecs import PROJECT
from slim.broker.plugin_settings import PluginSettings
from slim.broker.shaping import Shaping, parse_dscp, parse_duration, parse_rate, parse_size

hookimpl = pluggy.HookimplMarker(PROJECT)
"""Marks a function of a plugin as the implementation of the hook of that name."""

__all__ = [
    # hooks
    "hookimpl",
    "PluginSettings",
    # policy
    "Direction",
    "FlowRequest",
    "Identity",
    "PLAIN_PEER",
    "Shaping",
    "Verdict",
    "parse_dscp",
    "parse_duration",
    "parse_rate",
    "parse_size",
    # discovery
    "DiscoveryBackend",
    "DiscoveryContext",
    "Located",
    # encryption
    "EncryptionBackend",
    "KEY_BYTES",
    "NONCE_BYTES",
    "TAG_BYTES",
    # events
    "Event",
    "KINDS",
    "describe",
    "kind_of",
    "ConnectionEvent",
    "ConnectionOpened",
    "ConnectionClosed",
    "ConnectionsCut",
    "ListenerUp",
    "ListenerGone",
    "ContainerStarted",
    "ContainerEnded",
    "PeerConnected",
    "PeerDisconnected",
    "PeerFailed",
    "PathFailed",
    "SourceDenied",
    "WouldDeny",
    "PolicyChanged",
    "ConfigRefused",
    "TrapsConnected",
    "PluginFailed",
    "EventsLost",
    # addresses
    "Address",
    "Endpoint",
    "Network",
    "PortRange",
    "contains_any",
    "from_packed16",
    "named_ports",
    "packed16",
    "parse_address",
    # errors
    "ConfigError",
    "PluginError",
]
