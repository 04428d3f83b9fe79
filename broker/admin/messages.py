"""What slimctl asks of slimd over `admin.sock`, and the answers; also the schema of every `--json`.

A request is one length-prefixed msgpack frame, and so is its one answer (admin.server and
admin.client). Addresses are text here, since people and scripts read them.
"""

from __future__ import annotations

from typing import Annotated, TypeAlias

import msgspec

from slim.broker.events import Event

PROTOCOL = 1
MAX_REQUEST = 64 * 1024
MAX_ANSWER = 64 * 1024 * 1024
MAX_EVENTS = 1000
MAX_WAIT_S = 5.0


class AdminMessage(msgspec.Struct, frozen=True, tag=True):
    """Base of all messages; encoded as msgpack maps, so that fields may be added."""


class GetStatus(AdminMessage, frozen=True):
    protocol: int = PROTOCOL


class GetContainers(AdminMessage, frozen=True):
    protocol: int = PROTOCOL


class GetConnections(AdminMessage, frozen=True):
    protocol: int = PROTOCOL


class GetPlugins(AdminMessage, frozen=True):
    protocol: int = PROTOCOL


class GetChanges(AdminMessage, frozen=True):
    """What is new in the table of connections since that generation; 0: all of it.

    Slimd looks at most once a second, whoever asks.
    """

    after: int = 0
    protocol: int = PROTOCOL


class GetEvents(AdminMessage, frozen=True):
    """What happened behind the event of that number (Events.last), now or within `wait_s`.

    Ask again with the new `last` to follow. A number of 0 is before the oldest that is kept; one
    that is not reached yet was a predecessor's.
    """

    after: int = 0
    limit: Annotated[int, msgspec.Meta(ge=1, le=MAX_EVENTS)] = MAX_EVENTS
    wait_s: Annotated[float, msgspec.Meta(ge=0, le=MAX_WAIT_S)] = 0.0
    protocol: int = PROTOCOL


class Stop(AdminMessage, frozen=True):
    """End slimd; with `release` for good: the keeper ends with the last container."""

    release: bool = False
    protocol: int = PROTOCOL


class Reload(AdminMessage, frozen=True):
    """Read the configuration again, and put it in force if there is no mistake in it."""

    protocol: int = PROTOCOL


class Cut(AdminMessage, frozen=True):
    """End the connections with these cookies, at both ends."""

    cookies: list[int]
    protocol: int = PROTOCOL


class Explain(AdminMessage, frozen=True):
    """What would become of a connection of a workload of this host?"""

    source: str
    """Name, namespace/name or overlay address."""
    destination: str
    port: int
    protocol: int = PROTOCOL


class ExplainStep(msgspec.Struct, frozen=True):
    host: str
    """which slimd says so"""
    what: str
    """source, egress or destination"""
    outcome: str


class Explanation(AdminMessage, frozen=True):
    steps: list[ExplainStep]
    path: str
    """fast, fallback or denied, as in Connection"""
    reason: str
    rule: str
    """of the policy that decided, at whichever end"""


class Failure(AdminMessage, frozen=True):
    message: str
    hint: str = ""


class Stopping(AdminMessage, frozen=True):
    pid: int


class Mistake(msgspec.Struct, frozen=True):
    message: str
    hint: str = ""


class Reloaded(AdminMessage, frozen=True):
    """What became of Reload: with mistakes, everything is as it was."""

    mistakes: list[Mistake]
    needs_restart: list[str]
    """Keys of the configuration whose new values are not in force."""


class CutDone(AdminMessage, frozen=True):
    cookies: list[int]
    """Of the connections that were ended; the others had ended by themselves."""


class ProcessStatus(msgspec.Struct, frozen=True):
    role: str
    """control, traps or keeper"""
    pid: int
    """0: not running"""


class PeerStatus(msgspec.Struct, frozen=True):
    host: str
    endpoint: str
    state: str
    """connected, connecting, failed"""
    error: str
    retry_in_s: float
    rtt_ms: float


class Status(AdminMessage, frozen=True):
    version: str
    host: str
    guard: str
    config: str
    run_dir: str
    uptime_s: float
    host_addresses: list[str]
    host_ports: str
    overlays: list[str]
    processes: list[ProcessStatus]
    peers: list[PeerStatus]
    workloads: int
    containers: int
    listeners: int
    connections: int
    counters: dict[str, int]


class Container(msgspec.Struct, frozen=True):
    container: str
    workload: str
    namespace: str
    labels: dict[str, str]
    overlay: str
    addresses: list[str]
    pid: int
    command: list[str]
    age_s: float
    fail_mode: str
    isolated: list[str]
    """which of ingress, egress policy isolates"""
    listeners: int
    connections: int


class Containers(AdminMessage, frozen=True):
    containers: list[Container]


class Connection(msgspec.Struct, frozen=True):
    direction: str
    """out, in, or listen"""
    workload: str
    process: str
    """pid/comm of the process that made the call"""
    overlay_local: str
    overlay_peer: str
    host_local: str
    host_peer: str
    path: str
    """fast, fallback or denied"""
    reason: str
    """why not fast; empty when it is"""
    verdict: str
    """allow, deny, or audit: allowed, but would be denied by `rule`"""
    rule: str
    state: str
    """TCP state in lower case, as ss(8) prints it"""
    age_s: float
    cookie: int
    limits: str = ""
    """what is limited, in the units of the configuration; empty: nothing"""
    since: float = 0.0
    """seconds since 1970"""
    peer_host: str = ""
    """the host at the other end of the wire; empty where the path is not fast"""
    rtt_ms: float = 0.0
    """this and what follows as ss(8) has it, by the kernel's TCP_INFO"""
    retransmits: int = 0
    bytes_acked: int = 0
    """of what was sent"""
    bytes_received: int = 0
    delivery_rate: int = 0
    """bytes per second that the peer acknowledged when there last was much to send"""


class Connections(AdminMessage, frozen=True):
    connections: list[Connection]


class Traffic(msgspec.Struct, frozen=True, array_like=True):
    """What changes about a connection all the time; as in Connection."""

    cookie: int
    rtt_us: int
    retransmits: int
    bytes_acked: int
    bytes_received: int
    delivery_rate: int


class Changes(AdminMessage, frozen=True):
    """The table of connections and listeners, or what changed in it."""

    generation: int
    """to ask for what comes after this"""
    is_whole: bool
    """everything is here, and what is not here is gone"""
    at: float
    """when slimd looked, in seconds of its monotonic clock"""
    rows: list[Connection]
    """new, or with another state; without figures, which are in `traffic`"""
    gone: list[int]
    """cookies"""
    traffic: list[Traffic]


class HookCost(msgspec.Struct, frozen=True):
    """What a plugin's implementation of one hook has cost since it was loaded."""

    hook: str
    calls: int
    errors: int
    """calls that raised"""
    seconds: float
    """of all calls together"""
    slowest_s: float


class Plugin(msgspec.Struct, frozen=True):
    name: str
    version: str
    hooks: list[str]
    costs: list[HookCost] = []
    """of hooks that were called"""


class Plugins(AdminMessage, frozen=True):
    plugins: list[Plugin]


class Events(AdminMessage, frozen=True):
    events: list[Event]
    last: int
    """Number of the newest of them."""
    lost: int
    """Events behind the number that was asked for which are gone, or were never kept."""


AdminRequest: TypeAlias = (
    GetStatus
    | GetContainers
    | GetConnections
    | GetPlugins
    | GetChanges
    | GetEvents
    | Reload
    | Cut
    | Explain
    | Stop
)
AdminAnswer: TypeAlias = (
    Status
    | Containers
    | Connections
    | Changes
    | Plugins
    | Events
    | Reloaded
    | CutDone
    | Explanation
    | Stopping
    | Failure
)
