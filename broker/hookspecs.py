"""Every hook of Slim, and nothing else.

Two kinds: per-flow hooks are plain functions that must return at once and do no I/O; registration
hooks return objects that do the slow work, with a Protocol of their own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from slim.broker.decisions import Direction, FlowRequest, Identity, Verdict
    from slim.broker.discovery import DiscoveryBackend, DiscoveryContext
    from slim.broker.encryption import EncryptionBackend
    from slim.broker.plugin_settings import PluginSettings

PROJECT = "slim"
hookspec = pluggy.HookspecMarker(PROJECT)


# --- lifecycle --------------------------------------------------------------------------------


@hookspec
def slim_configure(settings: PluginSettings) -> None:
    """Called once, after the configuration was read and before any socket is opened.

    Returns: nothing.
    Must: check the plugin's own table `[plugins.<name>]` completely.
    If it raises: slimd does not start; ConfigError and PluginError are shown as they are.

    :param settings: the plugins' tables by name, and the name of this host.
    """


# --- policy -----------------------------------------------------------------------------------


@hookspec
def slim_decide(request: FlowRequest) -> Verdict | None:
    """Called once per flow and direction: egress at the source's host, ingress at the destination's.

    Returns: a Verdict; None means no opinion. Of several the strictest wins, whatever the order of
    plugins; if nobody has one the flow is allowed. The answer is cached for the flow's lifetime.
    Must: return at once, without I/O, the same for the same request until the policy changes.
    If it raises: the flow is denied, and the rule names the plugin.

    :param request: both ends, as far as they are known in this direction.
    """


@hookspec
def slim_isolates(workload: Identity, direction: Direction) -> bool | None:
    """Called when a workload appears: can any rule refuse something to or from it?

    Returns: True if so. Plain peers, whose identity nobody can vouch for, are then refused, and
    a connection whose verdict is not known in time is refused too. Any True wins; None is False.
    Must: return at once, without I/O; when in doubt, True.
    If it raises: counts as True.

    :param workload: the workload.
    :param direction: for connections from it (egress) or to it (ingress).
    """


# --- discovery --------------------------------------------------------------------------------


@hookspec
def slim_discovery_backends(context: DiscoveryContext) -> list[DiscoveryBackend]:
    """Called once, when slimd starts, inside its event loop.

    Returns: backends (slim.broker.discovery.DiscoveryBackend). Those that `[discovery] order`
    names are asked in that order; the first that has an opinion wins.
    Must: return at once; the backends' `locate` does the slow work.
    If it raises: slimd does not start.

    :param context: what slimd lends to a backend: sockets in workloads, signatures.
    """


# --- encryption -------------------------------------------------------------------------------


@hookspec
def slim_encryption_backends() -> list[EncryptionBackend]:
    """Called once, when slimd starts.

    Returns: backends; each names a module with the pure functions `seal` and `open`, which the
    trap process imports directly, without the plugin manager.
    Must: return at once.
    If it raises: slimd does not start.
    """
