"""Messages between two slimds over the control channel (peers.frames, peers.link).

Addresses travel packed in 16 bytes (endpoints.packed16). A `token` pairs a question with its
answer within one channel and direction. What a peer says about addresses is checked against its
certificate before anyone acts on it.
"""

from __future__ import annotations

import struct
from typing import TypeAlias

import msgspec

PROTOCOL = 2
MAX_FRAME = 64 * 1024
MAX_TEXT = 256
FEATURE_REVOKE = "revoke"
MAX_ENDS = 1024
END_BYTES = 36
_END = struct.Struct("!16sH16sH")

PackedEndpoint: TypeAlias = tuple[bytes, int]


class PeerMessage(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Base of all messages; encoded as msgpack arrays, the tag first."""


class Hello(PeerMessage, frozen=True):
    """The first message in each direction."""

    protocol: int
    host: str
    """Must be the name in the sender's certificate."""
    addresses: list[bytes]
    """Where the sender's host connections come from; nothing else is admitted."""
    features: list[str]


class Key(PeerMessage, frozen=True):
    """Seal records for my listeners with this key: for `seal_ms`; I accept them for `accept_ms`."""

    key_id: int
    key: bytes
    seal_ms: int
    accept_ms: int


class Resolve(PeerMessage, frozen=True):
    """May my workload at `source` connect to your workload's `destination`:`port`?"""

    token: int
    workload: str
    namespace: str
    labels: dict[str, str]
    source: bytes
    destination: bytes
    port: int
    rate: int | None = None
    """What my end of the connection is to receive at most, in bytes per second."""


class ResolvedFast(PeerMessage, frozen=True):
    """Yes: connect to the host endpoint with a record naming `flow`."""

    token: int
    host_address: bytes
    host_port: int
    flow: int
    lifetime_ms: int
    isolated: bool
    """Policy isolates the destination: plain peers are refused, the overlay is no way back."""
    rule: str
    workload: str = ""
    """Whose the destination is, for the asker's egress policy; empty: this slimd does not say."""
    namespace: str = ""
    labels: dict[str, str] = {}
    rate: int | None = None
    """What my end of the connection is to receive at most, in bytes per second."""


class ResolvedOverlay(PeerMessage, frozen=True):
    """Nobody brokers that port here; the answer is good until an Invalidate or its lifetime."""

    token: int
    reason: str
    lifetime_ms: int
    isolated: bool
    rule: str = ""
    workload: str = ""
    """As in ResolvedFast."""
    namespace: str = ""
    labels: dict[str, str] = {}


class ResolvedDenied(PeerMessage, frozen=True):
    """Policy at the destination says no."""

    token: int
    lifetime_ms: int
    rule: str


class ResolvedUnknown(PeerMessage, frozen=True):
    """That address is not one of my workloads'."""

    token: int


class Invalidate(PeerMessage, frozen=True):
    """What I answered about destination:port (0: every port) is no longer so."""

    destination: bytes
    port: int


class PolicyChanged(PeerMessage, frozen=True):
    """Whatever I answered about my workloads may not be so any more: ask again.

    This and what follows only to peers whose Hello names the feature "revoke".
    """


class Relabelled(PeerMessage, frozen=True):
    """My workload at `source` is this from now on: judge again what it has, and what goes to it."""

    workload: str
    namespace: str
    labels: dict[str, str]
    source: bytes


class Cut(PeerMessage, frozen=True):
    """I ended these connections; a reset may get lost, so end your side too.

    Packed by `pack_end`: the receiver's overlay endpoint, then the sender's.
    """

    ends: list[bytes]


class Pace(PeerMessage, frozen=True):
    """Policy here changed: what my ends of these connections are to receive at most now.

    In bytes per second; None: whatever your own policy allows. Ends as in Cut.
    """

    rate: int | None
    ends: list[bytes]


class Ping(PeerMessage, frozen=True):
    token: int


class Pong(PeerMessage, frozen=True):
    token: int


ResolveAnswer: TypeAlias = ResolvedFast | ResolvedOverlay | ResolvedDenied | ResolvedUnknown
AnyPeerMessage: TypeAlias = (
    Hello
    | Key
    | Resolve
    | ResolvedFast
    | ResolvedOverlay
    | ResolvedDenied
    | ResolvedUnknown
    | Invalidate
    | PolicyChanged
    | Relabelled
    | Cut
    | Pace
    | Ping
    | Pong
)


def pack_end(receivers: PackedEndpoint, senders: PackedEndpoint) -> bytes:
    """One connection in Cut."""
    return _END.pack(*receivers, *senders)


def unpack_end(end: bytes) -> tuple[PackedEndpoint, PackedEndpoint]:
    """The receiver's endpoint and the sender's."""
    address, port, other, other_port = _END.unpack(end)
    return (address, port), (other, other_port)
