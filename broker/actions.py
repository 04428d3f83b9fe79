"""What to do about a trapped call; the counterpart of calls.py. Carried out by perform.py.

`pipeline.decide` builds these from owned values only, so a test needs no kernel to see one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from slim.broker.connections import ConnectionRecord
    from slim.broker.endpoints import Endpoint
    from slim.broker.flows import FastFlow, FlowKey
    from slim.broker.listeners import ListenerRecord
    from slim.broker.shaping import Shaping


@dataclass(slots=True)
class Proceed:
    """Let the kernel perform the call on the program's own socket.

    Never for a socket that slimd put there. With a reason, the connection is recorded as one that
    fell back to the overlay.
    """

    reason: str = ""
    rule: str = ""
    destination: Endpoint | None = None
    shaping: Shaping | None = None


@dataclass(slots=True)
class Return:
    """Answer at once: 0, or an errno."""

    errno: int


@dataclass(slots=True)
class Refuse:
    """Policy says no: the errno goes to the program, the rule on record."""

    errno: int
    rule: str
    destination: Endpoint


@dataclass(slots=True)
class AskControl:
    """The flow is not known: ask, and decide again when the answer is here or its budget spent."""

    key: FlowKey
    retry: bool = False


@dataclass(slots=True)
class ConnectHost:
    """Put a host socket behind the fd that connects to the flow's host endpoint."""

    flow: FastFlow
    key: FlowKey
    bound_port: int
    """The source port that the program bound; 0: none."""


@dataclass(slots=True)
class ConnectAgain:
    """connect() on a socket that is already a host socket: answered from its state."""

    record: ConnectionRecord


@dataclass(slots=True)
class Disconnect:
    """Put a fresh overlay socket back behind the fd; then, if asked, let the call go on there."""

    then_proceed: bool


@dataclass(slots=True)
class ListenHost:
    """Listen on the overlay, then put a host listener behind the fd."""

    backlog: int


@dataclass(slots=True)
class ListenAgain:
    """listen() on a socket that is already a host listener: the backlog changes, nothing else."""

    listener: ListenerRecord
    backlog: int


@dataclass(slots=True)
class TakeConnection:
    """accept(): the next admitted connection, now or when one comes."""

    listener: ListenerRecord


@dataclass(slots=True)
class TellName:
    """Write an address to where the program wants it."""

    endpoint: Endpoint


@dataclass(slots=True)
class TellV6Only:
    """Write what the program set of IPV6_V6ONLY; None: what the socket itself has."""

    v6only: bool | None


@dataclass(slots=True)
class SetWithinLimits:
    """Set an option on the socket behind the fd, then what policy says of it, if anything."""

    level: int
    option: int
    value: bytes
    record: ConnectionRecord | None


@dataclass(slots=True)
class VacatePort:
    """Close retained listeners on the port whose programs are gone; then let bind() go on."""

    port: int


@dataclass(slots=True)
class MakeEpoll:
    """Answer epoll_create with a set, so that its number in the program is known."""

    flags: int


Action: TypeAlias = (
    Proceed
    | Return
    | Refuse
    | AskControl
    | ConnectHost
    | ConnectAgain
    | Disconnect
    | ListenHost
    | ListenAgain
    | TakeConnection
    | TellName
    | TellV6Only
    | SetWithinLimits
    | VacatePort
    | MakeEpoll
)
