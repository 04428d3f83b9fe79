"""Scripts for the pipeline: a call and what is known go in, an action comes out.

    playbook.on(socket_of(...)).call(Connect(...)) >> Proceed()

Nothing here touches a kernel: FakeView is the tables, `observed` the socket behind the fd.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from slim.broker.endpoints import Address, Endpoint, Network, contains_any
from slim.broker.kernel.socket_options import TCP_CLOSE, SocketFacts
from slim.broker.pipeline import Observed, decide

if TYPE_CHECKING:
    from slim.broker.actions import Action
    from slim.broker.calls import SocketCall
    from slim.broker.connections import ConnectionRecord
    from slim.broker.flows import Flow, FlowKey
    from slim.broker.listeners import ListenerRecord

WORKLOAD = 77
COOKIE = 1000


@dataclass
class FakeView:
    """A workload's tables, written by the test; notes what was looked up."""

    networks: tuple[Network, ...]
    flows: dict[FlowKey, Flow] = field(default_factory=dict)
    connections: dict[int, ConnectionRecord] = field(default_factory=dict)
    listeners: dict[int, ListenerRecord] = field(default_factory=dict)
    limits: dict[int, ConnectionRecord] = field(default_factory=dict)
    errno_of_policy: int = 13
    isolated: bool = False
    workload_cookie: int = WORKLOAD
    asked: list[FlowKey] = field(default_factory=list)

    def is_overlay(self, address: Address) -> bool:
        return contains_any(self.networks, address)

    def connection(self, cookie: int) -> ConnectionRecord | None:
        return self.connections.get(cookie)

    def listener(self, cookie: int) -> ListenerRecord | None:
        return self.listeners.get(cookie)

    def limited(self, cookie: int) -> ConnectionRecord | None:
        return self.limits.get(cookie)

    def flow(self, key: FlowKey) -> Flow | None:
        self.asked.append(key)
        return self.flows.get(key)

    def is_isolated(self) -> bool:
        return self.isolated

    def deny_errno(self) -> int:
        return self.errno_of_policy


def observed(
    *,
    is_ours: bool = False,
    local: str | None = None,
    uncopyable: str = "",
    domain: int = socket.AF_INET,
    is_tcp: bool = True,
    netns: int = WORKLOAD,
    state: int = TCP_CLOSE,
    nonblocking: bool = False,
    v6only: bool = False,
) -> Observed:
    """A socket: by default a fresh IPv4 TCP socket of the program's own."""
    facts = SocketFacts(COOKIE, domain, is_tcp, netns, state, nonblocking)
    return Observed(facts, is_ours, Endpoint.parse(local) if local else None, uncopyable, v6only)


@dataclass(frozen=True)
class Played:
    """One call that was decided; `>>` compares, and a failure prints the whole line."""

    transcript: str
    action: Action

    def __rshift__(self, expected: Action) -> Played:
        assert self.action == expected, f"{self.transcript}\n  expected {expected}"
        return self


@dataclass(frozen=True)
class Playbook:
    """Calls on one socket of one workload."""

    view: FakeView
    socket: Observed | None = None
    answer: Any = None

    def on(self, **facts: Any) -> Playbook:
        """The calls are made on such a socket (see `observed`)."""
        return replace(self, socket=observed(**facts))

    def on_nothing(self) -> Playbook:
        """The fd is closed, or no socket."""
        return replace(self, socket=None)

    def answered(self, flow: Flow) -> Playbook:
        """Control answered the question that an earlier call asked."""
        return replace(self, answer=flow)

    def call(self, asked: SocketCall) -> Played:
        action = decide(asked, self.socket, self.view, self.answer)
        return Played(f"{asked}\n  on {self.socket}\n  gave {action}", action)
