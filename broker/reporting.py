"""What slimd tells the tools: read from the registry, the shared records and sock_diag.

Nothing here asks traps: connections are listed even while it is busy, stopped or restarting.
"""

from __future__ import annotations

import importlib.metadata
import logging
import time
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from slim.broker.admin import messages as admin
from slim.broker.connections import (
    ConnectionRecord,
    read_limited,
    read_payloads,
    read_records,
)
from slim.broker.decisions import verdict_word
from slim.broker.kernel.namespaces import in_namespace
from slim.broker.kernel.pidfd import command_name
from slim.broker.kernel.sock_diag import LIVE_STATES, TcpSocket, dump_tcp
from slim.broker.listeners import ListenerRecord, read_listeners
from slim.broker.slots import SlotStore

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from slim.broker.endpoints import Endpoint
    from slim.broker.local.states import ContainerState
    from slim.broker.registry import Registry, Workload

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Snapshot:
    """Records and the sockets behind them, at one moment."""

    records: list[ConnectionRecord]
    listeners: list[ListenerRecord]
    sockets: dict[int, TcpSocket]
    """By cookie; of the host and of every workload that has a record."""


class Records:
    """The memfd that traps writes, read-only; owns its fd."""

    def __init__(self, fd: int) -> None:
        self._store = SlotStore(fd, writable=False)

    def close(self) -> None:
        self._store.close()

    def connections(self) -> list[ConnectionRecord]:
        """Every record; 4 ms per thousand."""
        return [*read_records(self._store)]

    def each(self) -> Iterator[ConnectionRecord]:
        """Every record, one at a time."""
        return read_records(self._store)

    def limited(self) -> list[ConnectionRecord]:
        """Those with a limit; 1 ms per thousand of all."""
        return [*read_limited(self._store)]

    def payloads(self) -> Iterator[tuple[int, bytes]]:
        """Every record undecoded, with its cookie; 1 ms per thousand."""
        return read_payloads(self._store)

    def listeners(self) -> list[ListenerRecord]:
        return [*read_listeners(self._store)]

    def snapshot(self, registry: Registry) -> Snapshot:
        """Takes milliseconds per thousand connections: run it beside the event loop."""
        records = [*read_records(self._store)]
        listeners = self.listeners()
        sockets = {sock.cookie: sock for sock in dump_tcp(info=True)}
        for cookie in {record.workload for record in records if record.path != "fast"}:
            workload = registry.workloads.get(cookie)
            if workload is not None:
                sockets.update({sock.cookie: sock for sock in _dump_in(workload, info=True)})
        return Snapshot(records, listeners, sockets)


def find_sockets(
    registry: Registry, records: Iterable[ConnectionRecord], *, info: bool = False
) -> dict[int, TcpSocket]:
    """The sockets behind these records that live, by cookie; 1 ms per thousand on the host."""
    wanted: dict[int | None, set[int]] = defaultdict(set)
    for record in records:
        if record.path != "denied":
            wanted[None if record.path == "fast" else record.workload].add(record.cookie)
    found: dict[int, TcpSocket] = {}
    for place, cookies in wanted.items():
        workload = registry.workloads.get(place) if place is not None else None
        if place is None:
            sockets = dump_tcp(states=LIVE_STATES, cookies=cookies, info=info)
        else:
            sockets = _dump_in(workload, cookies, info=info) if workload is not None else []
        found.update({sock.cookie: sock for sock in sockets})
    return found


def _dump_in(
    workload: Workload, cookies: set[int] | None = None, *, info: bool = False
) -> list[TcpSocket]:
    try:
        with in_namespace(workload.netns_fd):
            return dump_tcp(cookies=cookies, info=info)
    except OSError as error:
        log.debug("sockets of %s not listed: %s", workload.state.name, error)
        return []


def list_connections(snapshot: Snapshot, registry: Registry) -> admin.Connections:
    """Listeners and connections as slimctl shows them; finished ones left out."""
    now = time.time()
    names = {workload.state.cookie: workload.state.name for workload in registry}
    found = [describe_listener(listener, names, now) for listener in snapshot.listeners]
    for record in snapshot.records:
        sock = snapshot.sockets.get(record.cookie)
        if sock is None and record.path != "denied":
            continue
        found.append(describe_connection(record, sock, names, now))
    return admin.Connections(found)


def describe_listener(
    listener: ListenerRecord, names: dict[int, str], now: float
) -> admin.Connection:
    """`names` of workloads by cookie; `now` as time.time()."""
    return admin.Connection(
        direction="listen",
        workload=names.get(listener.workload, str(listener.workload)),
        process=_process(listener.pid),
        overlay_local=str(listener.local),
        overlay_peer="",
        host_local=str(listener.host),
        host_peer="",
        path="fast",
        reason="",
        verdict="allow",
        rule="",
        state="listen",
        age_s=max(0.0, now - listener.created),
        cookie=listener.cookie,
        since=listener.created,
    )


def describe_connection(
    record: ConnectionRecord, sock: TcpSocket | None, names: dict[int, str], now: float
) -> admin.Connection:
    """As describe_listener; without a socket: of one that was refused."""
    is_fast = record.path == "fast"
    local = record.local_endpoint()
    if not local.port and sock is not None:
        # Left on the overlay: the kernel chose its address after we looked.
        local = sock.local
    return admin.Connection(
        direction=record.direction,
        workload=names.get(record.workload, str(record.workload)),
        process=_process(record.pid),
        overlay_local=_text(local),
        overlay_peer=_text(record.peer_endpoint()),
        host_local=_text(sock.local) if is_fast and sock is not None else "",
        host_peer=_text(record.host_endpoint()) if is_fast else "",
        path=record.path,
        reason=record.reason,
        verdict=verdict_word(record.path, record.rule),
        rule=record.rule,
        state=sock.state_name if sock is not None else "",
        age_s=max(0.0, now - record.created),
        cookie=record.cookie,
        limits=record.describe_limits(),
        since=record.created,
        peer_host=record.peer_host,
        rtt_ms=sock.rtt_us / 1000 if sock is not None else 0.0,
        retransmits=sock.retransmits if sock is not None else 0,
        bytes_acked=sock.bytes_acked if sock is not None else 0,
        bytes_received=sock.bytes_received if sock is not None else 0,
        delivery_rate=sock.delivery_rate if sock is not None else 0,
    )


def list_containers(registry: Registry, snapshot: Snapshot | None) -> admin.Containers:
    """Containers with the counts of their workload's listeners and connections."""
    now = time.time()
    connections: Counter[int] = Counter()
    if snapshot is not None:
        for record in snapshot.records:
            if record.cookie in snapshot.sockets:
                connections[record.workload] += 1
    found: list[admin.Container] = []
    for workload in registry:
        state = workload.state
        isolated = [
            name
            for name, value in (
                ("ingress", state.isolated_ingress),
                ("egress", state.isolated_egress),
            )
            if value
        ]
        found.extend(
            _container(container, workload, isolated, connections[state.cookie], now)
            for container in workload.containers.values()
        )
    return admin.Containers(found)


def _container(
    container: ContainerState,
    workload: Workload,
    isolated: list[str],
    connections: int,
    now: float,
) -> admin.Container:
    state = workload.state
    return admin.Container(
        container=container.container,
        workload=state.name,
        namespace=state.namespace,
        labels=state.labels,
        overlay=state.overlay,
        addresses=[str(address) for address in workload.addresses],
        pid=container.pid,
        command=container.command,
        age_s=max(0.0, now - container.started),
        fail_mode=state.fail_mode,
        isolated=isolated,
        listeners=len(workload.listeners),
        connections=connections,
    )


def _process(pid: int) -> str:
    # Looked up when somebody asks: in the trap path it would cost every connection.
    return f"{pid}/{command_name(pid)}"


def own_version() -> str:
    try:
        return importlib.metadata.version("slim-broker")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _text(endpoint: Endpoint | None) -> str:
    return str(endpoint) if endpoint is not None and endpoint.port else ""
