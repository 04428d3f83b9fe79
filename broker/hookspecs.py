"""Every hook of Slim, and nothing else.

A plugin is a module whose functions are marked with `hookimpl` from slim.broker.plugin_api, or
which has a class `Plugin` whose methods are; Slim makes one instance of that. Hooks run in the
control process of slimd only. Per-flow hooks are plain functions that return at once and do no
I/O; registration hooks (`slim_*_backends`) return objects that do the slow work, with a type of
their own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from slim.broker.decisions import Direction, FlowRequest, Identity, Verdict
    from slim.broker.discovery import DiscoveryBackend, DiscoveryContext
    from slim.broker.encryption import EncryptionBackend
    from slim.broker.events import Event
    from slim.broker.plugin_settings import PluginSettings

PROJECT = "slim"

hookspec = pluggy.HookspecMarker(PROJECT)


# --- lifecycle --------------------------------------------------------------------------------


@hookspec
def slim_configure(settings: PluginSettings) -> None:
    """Called once for each instance, after the configuration was read.

    When slimd starts that is before any socket is opened. A reload makes new instances of all
    plugins and configures them beside those that decide; they take over together, or are thrown
    away. So keep what a table says in an instance of `Plugin`: functions of a module have one
    state for both.

    Returns: nothing. This is where a plugin reads its table, `settings.read(name, schema)`, and
    raises `settings.mistake(name, message)` for what makes no sense.
    Must: return at once; files may be read, networks may not.
    If it raises: slimd does not start, and a reload changes nothing. ConfigError and PluginError
    are shown as they are, anything else with the plugin's name.

    :param settings: the host's name and the `[plugins.<name>]` tables.
    """


@hookspec
def slim_stop() -> None:
    """Called when slimd ends, and after a reload for the instances that were replaced.

    Instances that never decided anything, because the reload found mistakes, are not told.

    Returns: nothing. This is where a plugin lets go of files and threads.
    Must: return within a second. It runs in a thread of its own, beside slimd's loop.
    If it raises: logged; everything else is stopped all the same.
    """


# --- policy -----------------------------------------------------------------------------------


@hookspec
def slim_decide(request: FlowRequest) -> Verdict | None:
    """Called once per flow and direction, at the source's slimd (egress) and the destination's.

    After a change of policy or labels it is called again for every flow that lives; connections
    that it denies then are cut.

    Returns: a Verdict, or None for no opinion. The strictest verdict of all plugins wins,
    whatever the order of plugins; when none has an opinion the flow is allowed. At egress the
    destination may be None, not known yet: refuse then only what would be refused whoever it is,
    and mark as `provisional` what depends on it. Slim asks again when the destination's slimd has
    said whose it is, and with PLAIN_PEER when nobody brokers it; where nobody can say, what is
    provisional is refused. A verdict with `audit` allows, and is counted and shown as what would
    be denied. Verdicts are kept for the lifetime of the flow.
    An allowing Verdict may carry limits, `shaping`: the strictest of each kind holds, of all
    verdicts and of the configuration's [shaping]. With `encrypt` it allows only what is encrypted
    on the wire, and is a deny where nothing encrypts the traffic: so it is in this version.
    Must: return at once, without I/O, and give the same verdict for the same request until the
    next slim_configure.
    If it raises: counts as a deny whose rule names the plugin; so does a result of another type.

    :param request: both ends of the flow, as far as they are known.
    """


@hookspec
def slim_isolates(workload: Identity, direction: Direction) -> bool | None:
    """Called when a workload appears, and at a reload: can the plugin refuse it anything?

    Returns: True if slim_decide can return a deny, or a Verdict with `encrypt`, for any flow of
    that workload in that direction; any True wins. Plain peers, which have no identity, are then
    refused, and the overlay is not used where policy could not be asked. False and None: it cannot.
    Must: return at once, without I/O; when in doubt, True.
    If it raises: counts as True.

    :param workload: a workload of this host.
    :param direction: ingress: flows to the workload; egress: flows from it.
    """


# --- discovery --------------------------------------------------------------------------------


@hookspec
def slim_discovery_backends(  # type: ignore[empty-body] # a specification has no body
    context: DiscoveryContext,
) -> list[DiscoveryBackend]:
    """Called when slimd starts or reloads, for the ways of finding who answers for an address.

    Returns: a list of objects, possibly empty. Those that `[discovery] order` names are asked,
    in that order; the first that has an opinion wins.
    Must: return at once; opening sockets waits for `workload_added`, asking for `locate`.
    If it raises: slimd does not start. What a backend's own methods raise is logged and counts
    as no opinion.

    :param context: this host's name, control endpoint and certificate, and sockets in workloads.
    """


# --- encryption -------------------------------------------------------------------------------


@hookspec
def slim_encryption_backends() -> list[EncryptionBackend]:  # type: ignore[empty-body]
    """Called when slimd starts or reloads, for the ciphers that can seal admission records.

    Returns: a list, possibly empty, of names and modules. The configuration chooses one by name;
    slimd imports its module and tries the functions before it starts.
    Must: return at once, without importing the module.
    If it raises: slimd does not start.
    """


# --- observation ------------------------------------------------------------------------------


@hookspec
def slim_observe(event: Event) -> None:
    """Called for everything that happens, soon after it did, in order.

    Events are the structs that slim.broker.plugin_api exports: match on their types, and pass by
    those you do not know, as more may come. `msgspec.json.encode(event)` is the JSON of
    `slimctl events`. Events that come faster than slimd keeps them are lost, and EventsLost in
    their place says how many.

    Returns: nothing.
    Must: return at once, without I/O: hand the event to a thread of your own, through a queue
    with a limit.
    If it raises: logged; so is a call that takes more than 50 ms. After ten such failures running
    the plugin hears of no event until slimd or the configuration is loaded again.

    :param event: what happened.
    """
