"""The names that a plugin may import; everything else of slim.broker may change without notice."""

from __future__ import annotations

import pluggy

from slim.broker.decisions import Direction, FlowRequest, Identity, Verdict
from slim.broker.discovery import DiscoveryBackend, DiscoveryContext, Located
from slim.broker.encryption import EncryptionBackend
from slim.broker.endpoints import (
    Address,
    Endpoint,
    Network,
    contains_any,
    from_packed16,
    packed16,
    parse_address,
)
from slim.broker.errors import ConfigError, PluginError
from slim.broker.hookspecs import PROJECT
from slim.broker.plugin_settings import PluginSettings

hookimpl = pluggy.HookimplMarker(PROJECT)
"""Marks a function of a plugin module as the implementation of the hook of that name."""

__all__ = [
    # hooks
    "hookimpl",
    "PluginSettings",
    # policy
    "Direction",
    "FlowRequest",
    "Identity",
    "Verdict",
    # discovery
    "DiscoveryBackend",
    "DiscoveryContext",
    "Located",
    # encryption
    "EncryptionBackend",
    # addresses
    "Address",
    "Endpoint",
    "Network",
    "contains_any",
    "from_packed16",
    "packed16",
    "parse_address",
    # errors
    "ConfigError",
    "PluginError",
]
