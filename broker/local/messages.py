"""Messages between the processes of one host; one message is one SEQPACKET datagram.

    slim-run <-> control   run.sock      Offer, Describe, PrepareNamespace/Namespace, Register/Ack
    control  <-> keeper    keeper.sock   Store, Drop, Fetch/Held/HeldEnd, StartTraps, StopTraps,
                                         Release
    traps    <-> keeper    keeper.sock   Store, Drop, Fetch
    control  <-> traps     traps.sock    the rest

Addresses travel packed in 16 bytes (endpoints.packed16). Every union is tagged by the type's name.
A `token` pairs a request with its `Done`.
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from slim.broker.connections import ConnectionRecord
from slim.broker.local.states import ContainerState, FailMode, TrapSettings, WorkloadState
from slim.broker.shaping import Shaping

PROTOCOL = 5
"""Raised with any change here; processes of different versions refuse each other."""

MAX_DATAGRAM = 64 * 1024


class Message(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Base of all messages; encoded as msgpack arrays, the tag first."""


# --- slim-run and control ---------------------------------------------------------------------


class Offer(Message, frozen=True):
    """Control's greeting: the seccomp filter to install, as an array of `struct sock_filter`.
    Without one: it depends on who asks, who says so by Describe and gets another Offer."""

    protocol: int
    filter: bytes


class Describe(Message, frozen=True):
    """What Register will claim; decides nothing but the filter."""

    workload: str | None
    namespace: str
    labels: dict[str, str]


class PrepareNamespace(Message, frozen=True):
    """Make a namespace, attach it to the built-in overlay, remove it after the last process."""

    overlay: str
    address: str | None


class Namespace(Message, frozen=True):
    """Answer to PrepareNamespace; carries one fd, the network namespace."""

    name: str


class Register(Message, frozen=True):
    """Claim a container. Carries three fds: namespace, pidfd of slim-run, seccomp listener."""

    workload: str | None
    namespace: str
    labels: dict[str, str]
    overlay: str | None
    fail_mode: FailMode
    command: list[str]
    prepared: str | None
    """The name from `Namespace`, when slimd made the namespace."""


class Ack(Message, frozen=True):
    """The container is supervised; slim-run may exec."""

    container: str


class Refuse(Message, frozen=True):
    """The request was understood and will not be done."""

    message: str
    hint: str


# --- keeper -----------------------------------------------------------------------------------


class Store(Message, frozen=True):
    """Keep the attached fds (if any) and `meta` under a name; replaces what was there."""

    token: int
    name: str
    meta: bytes


class Drop(Message, frozen=True):
    """Forget the names and close their fds."""

    token: int
    names: list[str]


class Fetch(Message, frozen=True):
    """Ask for everything whose name starts with `prefix`: a Held each, then HeldEnd."""

    token: int
    prefix: str


class Held(Message, frozen=True):
    """One thing the keeper keeps, with its fds attached."""

    name: str
    meta: bytes


class HeldEnd(Message, frozen=True):
    token: int
    keeper_pid: int
    traps_pid: int
    """0 while traps does not run."""


class StartTraps(Message, frozen=True):
    """Run traps from now on, and again with back-off whenever it ends.

    Without one for `gap_limit_s` the keeper answers calls itself.
    """

    token: int
    argv: list[str]
    gap_limit_s: float


class StopTraps(Message, frozen=True):
    """End traps with SIGTERM and leave it ended."""

    token: int


class Release(Message, frozen=True):
    """End traps, and the keeper with the last container: until then it answers calls itself."""

    token: int


class Done(Message, frozen=True):
    """The request with this token was carried out, or failed with `error` (empty: success)."""

    token: int
    error: str = ""


# --- control and traps ------------------------------------------------------------------------


class TrapsHello(Message, frozen=True):
    """The first message of a connection. What ended while there was none is found by the lists."""

    protocol: int
    pid: int
    containers: list[str]
    """All that are supervised."""
    idle: list[int]
    """Workloads (cookies) without a container."""


class Settings(Message, frozen=True):
    settings: TrapSettings


class AttachWorkload(Message, frozen=True):
    """Create or update a workload. Carries the namespace's fd."""

    token: int
    state: WorkloadState


class AttachContainer(Message, frozen=True):
    """Supervise a listener. Carries the listener's fd."""

    token: int
    state: ContainerState


class DetachWorkload(Message, frozen=True):
    """The last container is gone and control has forgotten the workload."""

    cookie: int


class ContainerGone(Message, frozen=True):
    """From traps: every process under this listener has ended."""

    container: str


class LookUp(Message, frozen=True):
    """From traps, on a flow-cache miss: may this workload reach that destination, and how?"""

    token: int
    workload: int
    source: bytes | None
    """The address the program bound, if it did."""
    destination: bytes
    port: int
    pid: int
    retry: bool = False
    """The host endpoint known until now refused: ask the destination's slimd again."""


class FlowFast(Message, frozen=True):
    """Answer to LookUp: connect to the host endpoint with a sealed record naming `flow`."""

    token: int
    source: bytes
    host_address: bytes
    host_port: int
    flow: int
    peer: str
    """Name of the accepting host; names the sealing key too."""
    lifetime_ms: int
    fallback_lawful: bool
    rule: str
    shaping: Shaping | None = None
    peer_rate: int | None = None
    """What the other end wants to receive at most, in bytes per second."""


class FlowOverlay(Message, frozen=True):
    """Answer to LookUp: this connection belongs on the overlay, for that reason."""

    token: int
    reason: str
    lifetime_ms: int
    rule: str
    shaping: Shaping | None = None


class FlowDenied(Message, frozen=True):
    """Answer to LookUp: policy says no; the program gets `errno`."""

    token: int
    errno: int
    lifetime_ms: int
    rule: str


class ListenerUp(Message, frozen=True):
    """From traps: a workload listens, and host connections reach it at the host port."""

    workload: int
    address: bytes
    """The unspecified address (:: or ::ffff:0.0.0.0) for a wildcard listener."""
    dual_stack: bool
    port: int
    host_address: bytes
    host_port: int
    cookie: int
    """SO_COOKIE of the host listener."""


class ListenerGone(Message, frozen=True):
    """From traps: the program's last copy of that host listener is closed."""

    workload: int
    cookie: int


class PathFailed(Message, frozen=True):
    """From traps: a connection to that host endpoint did not get through."""

    peer: str
    host_address: bytes
    host_port: int
    errno: int


class TrapsCounters(Message, frozen=True):
    """From traps: everything it has counted since it started, by name."""

    counters: dict[str, int]


class AddInboundFlow(Message, frozen=True):
    """To traps: records naming `flow` are admitted to that listener from now on."""

    token: int
    flow: int
    peer: str
    workload: int
    destination: bytes
    port: int
    source: bytes
    source_workload: str
    rule: str
    lifetime_ms: int
    shaping: Shaping | None = None
    peer_rate: int | None = None
    """What the source wants to receive at most, in bytes per second."""


class DropFlows(Message, frozen=True):
    """To traps: forget flows to this destination (port 0: all ports)."""

    destination: bytes
    port: int


class DropFlowsInto(Message, frozen=True):
    """To traps: forget flows to these networks, packed as WorkloadState has them."""

    networks: list[tuple[bytes, int]]


class NewEpoch(Message, frozen=True):
    """To traps: policy changed. Every outbound flow was judged by the old one: forget them all."""

    token: int


class DropInbound(Message, frozen=True):
    """To traps: admit nobody under these flows any more, and nobody admitted but not accepted."""

    token: int
    flows: list[int]


class ForgetConnections(Message, frozen=True):
    """To traps: sock_diag shows these sockets no more."""

    cookies: list[int]


class Relimit(Message, frozen=True):
    """To traps: these connections have other limits now."""

    token: int
    records: list[ConnectionRecord]


class SealingKey(Message, frozen=True):
    """To traps: seal records for that peer with this key."""

    peer: str
    key_id: int
    key: bytes
    seal_ms: int
    accept_ms: int


class OpeningKey(Message, frozen=True):
    """To traps: records of that peer may be sealed with this key, from these addresses."""

    token: int
    peer: str
    key_id: int
    key: bytes
    accept_ms: int
    addresses: list[bytes]


KeeperRequest: TypeAlias = Store | Drop | Fetch | StartTraps | StopTraps | Release
KeeperAnswer: TypeAlias = Held | HeldEnd | Done
RunRequest: TypeAlias = Describe | PrepareNamespace | Register
RunAnswer: TypeAlias = Offer | Namespace | Ack | Refuse
ToTraps: TypeAlias = (
    Settings
    | AttachWorkload
    | AttachContainer
    | DetachWorkload
    | FlowFast
    | FlowOverlay
    | FlowDenied
    | AddInboundFlow
    | DropFlows
    | DropFlowsInto
    | NewEpoch
    | DropInbound
    | ForgetConnections
    | Relimit
    | SealingKey
    | OpeningKey
)
ToControl: TypeAlias = (
    TrapsHello
    | ContainerGone
    | LookUp
    | ListenerUp
    | ListenerGone
    | PathFailed
    | TrapsCounters
    | Done
)
