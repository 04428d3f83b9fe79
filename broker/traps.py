"""slimd's trap process: answers notifications, and computes nothing at length.

Started by the keeper (`python -m slim.broker.traps --run-dir DIR`), which gives it everything a
predecessor left: settings, workloads, listener fds, memfds. Runs no plugin and no TLS: one busy
thread beside it would cost every trapped call a turn of the interpreter lock.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import logging
import os
import signal
import socket
from collections import Counter
from typing import TYPE_CHECKING, Protocol, TypeVar

import msgspec

from slim.broker import log as logs
from slim.broker.admission import keyring
from slim.broker.admission.keyring import InboundFlow, KeyRing, boottime
from slim.broker.admission.nonces import Nonces
from slim.broker.admission.replay import ReplayWindows
from slim.broker.connections import SLOT_BYTES, SLOTS, ConnectionTable
from slim.broker.context import TrapContext
from slim.broker.endpoints import PortRange, from_packed16
from slim.broker.errors import SlimError
from slim.broker.flows import FlowTable
from slim.broker.host_sockets import make_host_sockets
from slim.broker.in_hand import InHand
from slim.broker.kernel.namespaces import own_netns_cookie
from slim.broker.listeners import HostPorts, ListenerTable
from slim.broker.local import messages, states
from slim.broker.loop import Loop
from slim.broker.news_ring import NewsRing
from slim.broker.perform import forget_dead_threads
from slim.broker.recovery import find_epoll_numbers, finish, restart_held_calls
from slim.broker.slots import SlotStore
from slim.broker.supervisor import Supervisor
from slim.broker.trapping import ContainerView, Trapping
from slim.broker.traps_links import Control, Keeper, KeeperGone
from slim.broker.workloads import Workload, network_from_packed

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

log = logging.getLogger(__name__)

REPLAY_WINDOWS = 1024
NEWS = 4096
"""New connections that control may be behind, before it misses some."""
ACCEPT_MARGIN_S = 60
EXPIRE_EVERY_S = 10.0
TELL_COUNTERS_EVERY_S = 1.0
IDLE_TOLD = 1024
"""Workloads without a container that fit the greeting beside registry.MAX_CONTAINERS names."""


class Memory(Protocol):
    """What is kept in a memfd, and outlives this process."""

    def fileno(self) -> int: ...


M = TypeVar("M", bound=Memory)
_CLAIMED = ("settings", "memory/", "workload/", "container/", "retained/")


class Traps:
    """The process: what is kept, what control says, and the containers."""

    def __init__(self, run_dir: str, keeper: Keeper) -> None:
        self._keeper = keeper
        held = {name: (meta, fds) for name, meta, fds in keeper.fetch("")}
        self._held = held
        settings = msgspec.msgpack.decode(held["settings"][0], type=states.TrapSettings)
        self._control = Control(f"{run_dir}/traps.sock", self._on_control)
        self._context = self._make_context(settings)
        self._control.context = self._context
        self._control.list_containers = self._list_containers
        self._trapping = Trapping(self._context)
        self._containers: dict[str, Supervisor] = {}
        self._told: Counter[str] = Counter()
        self._take_over()

    def run(self) -> None:
        loop = self._context.loop
        loop.watch(self._keeper.fileno(), lambda _: self._on_keeper())
        signal.signal(signal.SIGTERM, lambda *_: loop.stop())
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        self._control.start()
        self._expire()
        self._tell_counters()
        self._recover()
        # What is alive now stays alive; a full collection in the middle of a trap takes longer
        # than the trap.
        gc.freeze()
        loop.run()

    # --- start --------------------------------------------------------------------------------

    def _recover(self) -> None:
        """Learn what only the predecessor knew of the programs that run."""
        work = self._context.hand.take()
        if not self._containers:
            return
        if work is not None and work.call.container in self._containers:
            finish(work, self._containers[work.call.container])
        namespaces = {
            workload.cookie: os.fstat(workload.namespace_fd()).st_ino
            for workload in self._context.workloads.values()
        }
        # Sets first: the calls that come again move registrations.
        numbers = find_epoll_numbers(namespaces.values())
        for container in self._containers.values():
            inode = namespaces[container.workload.cookie]
            container.epoll_numbers.update(numbers.get(inode, ()))
        restarted = restart_held_calls(namespaces.values())
        if restarted:
            log.info("%d calls that a predecessor held are issued again", restarted)

    def _make_context(self, settings: states.TrapSettings) -> TrapContext:
        ports = PortRange(*settings.host_ports)
        lifetime = settings.flow_lifetime_s
        connections = self._slots("connections", SLOT_BYTES, SLOTS)
        admission = self._slots("admission", keyring.SLOT_BYTES, keyring.SLOTS)
        backend = importlib.import_module(settings.encryption)
        kept_s = lifetime + ACCEPT_MARGIN_S
        self._windows = self._inherit(
            "replay",
            lambda fd: ReplayWindows(fd, lifetime_s=kept_s),
            lambda: ReplayWindows.create(windows=REPLAY_WINDOWS, lifetime_s=kept_s),
        )
        nonces = self._inherit("nonces", Nonces, Nonces.create)
        ring = KeyRing(admission, self._windows, nonces, backend.seal, backend.open)
        ring.set_own_addresses(settings.host_addresses)
        host_netns = own_netns_cookie()
        return TrapContext(
            loop=Loop(),
            settings=settings,
            flows=FlowTable(),
            connections=ConnectionTable(connections),
            listeners=ListenerTable(connections),
            host_ports=HostPorts(ports, connections, quarantine_s=2 * lifetime),
            keyring=ring,
            news=self._inherit(
                "news",
                NewsRing,
                lambda: NewsRing.create("slim-news", slot_bytes=SLOT_BYTES, slots=NEWS),
            ),
            control=self._control,
            keeper=self._keeper,
            hand=self._inherit("in-hand", InHand, InHand.create),
            host_netns=host_netns,
            sockets=make_host_sockets(settings, host_netns),
        )

    def _slots(self, name: str, slot_bytes: int, slots: int) -> SlotStore:
        return self._inherit(
            name,
            lambda fd: SlotStore(fd, writable=True),
            lambda: SlotStore.create(f"slim-{name}", slot_bytes=slot_bytes, slots=slots),
        )

    def _inherit(self, name: str, take: Callable[[int], M], create: Callable[[], M]) -> M:
        """A predecessor's memory, or new memory, which the keeper has a duplicate of."""
        held = self._held.pop(f"memory/{name}", None)
        if held is not None:
            return take(held[1][0])
        made = create()
        self._keeper.store(f"memory/{name}", b"", (made.fileno(),))
        return made

    def _take_over(self) -> None:
        """Attach everything the predecessor had."""
        for name, (meta, fds) in [*self._held.items()]:
            if name.startswith("workload/"):
                state = msgspec.msgpack.decode(meta, type=states.WorkloadState)
                self._context.sockets.add_workload(state.cookie)
                self._context.workloads[state.cookie] = Workload(state, fds[0])
                del self._held[name]
        self._context.index_addresses()
        for listener in self._context.listeners:
            held = self._held.pop(f"retained/{listener.cookie}", None)
            retained = None
            if held is not None:
                retained = socket.socket(
                    listener.family, socket.SOCK_STREAM, socket.IPPROTO_TCP, fileno=held[1][0]
                )
            self._trapping.acceptor.add_listener(listener, retained)
        self._trapping.listening.check_all()
        for name, (meta, fds) in [*self._held.items()]:
            if name.startswith("container/"):
                container = msgspec.msgpack.decode(meta, type=states.ContainerState)
                self._attach_container(container, fds[0])
                del self._held[name]
            elif name.startswith("retained/"):
                # Its listener is gone: it ended while no traps looked.
                self._keeper.drop(name)
        for _, fds in self._held.values():
            for fd in fds:
                os.close(fd)
        self._held.clear()

    # --- containers ---------------------------------------------------------------------------

    def _attach_container(self, state: states.ContainerState, listener: int) -> str:
        """Supervise a listener, which is taken; gives the reason why not."""
        workload = self._context.workloads.get(state.workload)
        if workload is None or state.container in self._containers:
            os.close(listener)
            return "the container is attached already" if workload else "unknown workload"
        supervisor = Supervisor(
            state,
            listener,
            workload,
            self._context.loop,
            self._trapping.handle,
            self._on_container_end,
            self._context.counters,
        )
        supervisor.view = ContainerView(self._context, workload)
        self._containers[state.container] = supervisor
        return ""

    def _on_container_end(self, supervisor: Supervisor) -> None:
        supervisor.close()
        forget_dead_threads()
        del self._containers[supervisor.state.container]
        self._keeper.drop(f"container/{supervisor.state.container}")
        self._control.send(messages.ContainerGone(supervisor.state.container))

    def _list_containers(self) -> tuple[list[str], list[int]]:
        """Names of the containers, and cookies of the workloads without one."""
        # A control that is greeted knows nothing yet.
        self._told.clear()
        used = {supervisor.workload.cookie for supervisor in self._containers.values()}
        idle = sorted(self._context.workloads.keys() - used)
        return [*self._containers], idle[:IDLE_TOLD]

    def _attach_workload(self, state: states.WorkloadState, netns_fd: int) -> str:
        """Create or update it; takes the fd; gives the reason why not."""
        workload = self._context.workloads.get(state.cookie)
        if workload is None:
            try:
                self._context.sockets.add_workload(state.cookie)
            except (SlimError, OSError) as error:
                os.close(netns_fd)
                return f"the guard does not take the workload: {error}"
            self._context.workloads[state.cookie] = Workload(state, netns_fd)
        else:
            os.close(netns_fd)
            workload.update(state)
            self._context.flows.drop_workload(state.cookie)
            self._trapping.acceptor.judge_again(state.cookie, frozenset())
        self._context.index_addresses()
        return ""

    def _detach_workload(self, cookie: int) -> None:
        workload = self._context.workloads.pop(cookie, None)
        if workload is not None:
            self._context.index_addresses()
            self._control.drop_workload(cookie)
            self._context.flows.drop_workload(cookie)
            self._context.connections.forget_workload(cookie)
            self._context.keyring.drop_workload(cookie)
            self._context.sockets.drop_workload(cookie)
            workload.close()

    # --- messages -----------------------------------------------------------------------------

    def _on_keeper(self) -> None:
        try:
            self._keeper.receive()
        except KeeperGone:
            log.info("the keeper is gone; traps ends")
            self._context.loop.stop()

    def _on_control(self, message: messages.ToTraps, fds: list[int]) -> None:
        context = self._context
        match message:
            case messages.FlowFast() | messages.FlowOverlay() | messages.FlowDenied():
                self._control.on_flow(message)
            case messages.AddInboundFlow():
                self._add_inbound(message)
            case messages.AttachContainer():
                error = self._attach_container(message.state, fds.pop()) if fds else "no listener"
                self._control.send(messages.Done(message.token, error))
            case messages.AttachWorkload():
                error = self._attach_workload(message.state, fds.pop()) if fds else "no namespace"
                self._control.send(messages.Done(message.token, error))
            case messages.DetachWorkload():
                self._detach_workload(message.cookie)
            case messages.DropFlows():
                context.flows.drop_destination(from_packed16(message.destination), message.port)
            case messages.DropFlowsInto():
                context.flows.drop_into(
                    tuple(network_from_packed(*each) for each in message.networks)
                )
            case messages.NewEpoch():
                context.epoch += 1
                context.flows.drop_all()
                self._control.send(messages.Done(message.token))
            case messages.DropInbound():
                for flow in message.flows:
                    context.keyring.drop_flow(flow)
                self._trapping.acceptor.judge_again(0, frozenset(message.flows))
                self._control.send(messages.Done(message.token))
            case messages.ForgetConnections():
                for cookie in message.cookies:
                    context.connections.forget(cookie)
                    self._trapping.connector.forget(cookie)
            case messages.Relimit():
                for record in message.records:
                    context.connections.replace(record)
                self._control.send(messages.Done(message.token))
            case messages.SealingKey():
                context.keyring.add_sealing_key(
                    message.peer, message.key_id, message.key, message.accept_ms / 1000
                )
            case messages.OpeningKey():
                context.keyring.add_opening_key(
                    message.peer,
                    message.key_id,
                    message.key,
                    message.accept_ms / 1000,
                    message.addresses,
                )
                self._control.send(messages.Done(message.token))
            case messages.Settings():
                self._take_settings(message.settings)
        for fd in fds:
            os.close(fd)

    def _take_settings(self, new: states.TrapSettings) -> None:
        """Take over what may change while calls are held; start again for the rest."""
        context, old = self._context, self._context.settings
        fixed = msgspec.structs.replace(
            old,
            resolve_budget_ms=new.resolve_budget_ms,
            connect_budget_ms=new.connect_budget_ms,
            flow_lifetime_s=new.flow_lifetime_s,
            deny_errno=new.deny_errno,
            log_level=new.log_level,
        )
        if fixed != new:
            # The keeper starts it again, with the new ones; held calls are issued anew.
            log.info("the settings changed: traps starts again")
            context.loop.stop()
            return
        context.settings = new
        context.host_ports.quarantine_s = 2 * new.flow_lifetime_s
        self._windows.keep_for(new.flow_lifetime_s + ACCEPT_MARGIN_S)
        logging.getLogger().setLevel(new.log_level.upper())

    def _add_inbound(self, message: messages.AddInboundFlow) -> None:
        added = self._context.keyring.add_flow(
            InboundFlow(
                flow=message.flow,
                peer=message.peer,
                workload=message.workload,
                port=message.port,
                destination=message.destination,
                source=message.source,
                source_workload=message.source_workload,
                rule=message.rule,
                expires=boottime() + message.lifetime_ms / 1000,
                shaping=message.shaping,
                peer_rate=message.peer_rate,
            )
        )
        self._control.send(messages.Done(message.token, "" if added else "too many inbound flows"))

    def _tell_counters(self) -> None:
        """What was counted since the last time, for the operator."""
        counters = self._context.counters
        if counters != self._told and self._control.send(messages.TrapsCounters({**counters})):
            self._told = counters.copy()
        self._context.loop.call_later(TELL_COUNTERS_EVERY_S, self._tell_counters)

    def _expire(self) -> None:
        self._context.keyring.expire()
        self._context.loop.call_later(EXPIRE_EVERY_S, self._expire)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the process; everything it needs comes from the keeper."""
    parser = argparse.ArgumentParser(prog="slimd-traps")
    parser.add_argument("--run-dir", required=True)
    parser.add_argument("--log-level", default="info")
    parser.add_argument("--log-format", default="auto")
    options = parser.parse_args(arguments)
    logs.configure(options.log_level, options.log_format)
    try:
        traps = Traps(options.run_dir, Keeper(f"{options.run_dir}/keeper.sock"))
    except SlimError as error:
        raise SystemExit(f"traps: {error.message} ({error.hint})") from None
    traps.run()


if __name__ == "__main__":
    main()
