"""What the parts of traps share: the loop, the tables, the settings, the two links.

One object per process, made by traps.py. The parts know each other through it only.
"""

from __future__ import annotations

import socket
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from slim.broker.connections import ConnectionRecord, pack
from slim.broker.endpoints import Address, Endpoint, PortRange, from_packed16

if TYPE_CHECKING:
    from collections.abc import Callable

    from slim.broker.admission.keyring import KeyRing
    from slim.broker.connections import ConnectionTable
    from slim.broker.flows import Flow, FlowKey, FlowTable
    from slim.broker.host_sockets import HostSockets
    from slim.broker.in_hand import InHand
    from slim.broker.listeners import HostPorts, ListenerRecord, ListenerTable
    from slim.broker.local.states import TrapSettings
    from slim.broker.loop import Loop
    from slim.broker.news_ring import NewsRing
    from slim.broker.shaping import Shaping
    from slim.broker.supervisor import PendingCall
    from slim.broker.workloads import Workload


class ControlLink(Protocol):
    """Questions and news for control; implemented in traps_links.py."""

    def ask(
        self, key: FlowKey, pid: int, on_answer: Callable[[Flow], None], *, retry: bool
    ) -> None:
        """Ask once per key at a time; `on_answer` is called within the resolve budget."""
        ...

    def listener_up(self, listener: ListenerRecord) -> None: ...
    def listener_gone(self, workload: int, cookie: int) -> None: ...
    def path_failed(self, peer: str, host: Endpoint, errno: int) -> None: ...


class KeeperLink(Protocol):
    """Things put into and taken out of the keeper; implemented in traps_links.py."""

    def store(self, name: str, meta: bytes, fds: tuple[int, ...]) -> None: ...
    def drop(self, name: str, on_done: Callable[[], None] | None = None) -> None: ...


@dataclass(slots=True)
class TrapContext:
    loop: Loop
    settings: TrapSettings
    flows: FlowTable
    connections: ConnectionTable
    listeners: ListenerTable
    host_ports: HostPorts
    keyring: KeyRing
    news: NewsRing
    control: ControlLink
    keeper: KeeperLink
    hand: InHand
    host_netns: int
    sockets: HostSockets
    workloads: dict[int, Workload] = field(default_factory=dict)
    owners: dict[Address, int] = field(default_factory=dict)
    """Overlay addresses of this host -> the workload's cookie."""
    counters: Counter[str] = field(default_factory=Counter)
    epoch: int = 0
    """Counts the changes of policy that this process saw."""

    @property
    def ports(self) -> PortRange:
        return PortRange(*self.settings.host_ports)

    def host_address(self, domain: int) -> Address | None:
        """The host's own address for a socket of that family; an AF_INET6 one takes both."""
        for packed in self.settings.host_addresses:
            address = from_packed16(packed)
            if domain == socket.AF_INET6 or address.version == 4:
                return address
        return None

    def index_addresses(self) -> None:
        """After a workload came, went or changed its addresses."""
        self.owners = {
            address: workload.cookie
            for workload in self.workloads.values()
            for address in workload.addresses
        }

    def admits_plain(self, workload: int, peer: Address) -> bool:
        """Whether a plain peer may reach the workload: not if policy isolates it.

        The workload itself always may, over its loopback or its own address.
        """
        known = self.workloads.get(workload)
        if known is None:
            return False
        return not known.state.isolated_ingress or peer.is_loopback or peer in known.addresses

    def record(
        self,
        call: PendingCall,
        cookie: int,
        *,
        direction: str,
        local: Endpoint | None,
        peer: Endpoint | None,
        path: str,
        host_peer: Endpoint | None = None,
        peer_host: str = "",
        reason: str = "",
        rule: str = "",
        shaping: Shaping | None = None,
        peer_rate: int | None = None,
    ) -> None:
        """Remember a connection (connections.py), and let control know of it when it looks."""
        self.counters[f"connections_{path}_{direction}"] += 1
        payload = self.connections.add(
            ConnectionRecord(
                cookie=cookie,
                workload=call.workload.cookie,
                direction="in" if direction == "in" else "out",
                local=pack(local),
                peer=pack(peer),
                host_peer=pack(host_peer),
                peer_host=peer_host[:63],
                path="fast" if path == "fast" else "denied" if path == "denied" else "fallback",
                reason=reason[:80],
                rule=rule[:80],
                pid=call.tid,
                created=time.time(),
                shaping=shaping,
                peer_rate=peer_rate,
                is_limited=shaping is not None or peer_rate is not None,
            )
        )
        self.news.write(int((time.monotonic() - call.received) * 1_000_000), payload)
