"""The kernel guard of one slimd: programs loaded and attached, workloads, routes, listeners, keys.

What it makes is pinned: it outlives this process, and another Guard of the same instance takes it
over. Counterpart: kmod/guard.bpf.c; the layouts of its maps are layouts.py's.
"""

from __future__ import annotations

import os
import socket
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

from slim.broker.errors import SlimError
from slim.broker.guard import layouts, requirements
from slim.broker.guard.layouts import (
    NEVER,
    NO_SHAPING,
    SIZES,
    Counter,
    InboundFlow,
    Route,
    Shaping,
    SocketFlag,
)
from slim.broker.guard.maker import STOCK, Maker
from slim.broker.guard.places import Places, find_places, make_places, make_threaded
from slim.broker.kernel import bpf

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    from slim.broker.endpoints import Endpoint

KEY_GRACE_S = 60
"""How long an opening key is accepted after the time it was given for: SYNs on their way."""
SEALED = SocketFlag(0)
POSSIBLE_CPUS = "/sys/devices/system/cpu/possible"


class Guard:
    """Takes over or makes everything for `instance`; this process moves into its cgroup.

    Not thread-safe but for what `maker` says of itself. KernelFeatureMissing when the guard cannot
    run here.
    """

    def __init__(
        self, instance: str, *, program: Path = requirements.OBJECT, stock: int = STOCK
    ) -> None:
        requirements.require()
        self.places: Places = find_places(instance)
        self._check_other_layouts()
        make_places(self.places)
        install(self.places, program)
        with ExitStack() as undo:
            self._maps = {
                name: bpf.open_map(
                    self.places.maps / name, key_size=key_size, value_size=value_size
                )
                for name, (key_size, value_size) in SIZES.items()
            }
            for opened in self._maps.values():
                undo.callback(opened.close)
            self.maker = Maker(self.places, self._maps["sockets"], stock=stock)
            undo.pop_all()

    def _check_other_layouts(self) -> None:
        if not self.places.pins.is_dir():
            return
        others = [path for path in self.places.pins.iterdir() if path != self.places.versioned]
        if others:
            raise SlimError(
                f"{others[0]} belongs to another version of the kernel guard",
                hint="slimd --cleanup, when the containers have ended, then start this version",
            )

    # Workloads.

    def add_workload(self, workload: int, shaping: Shaping = NO_SHAPING) -> None:
        """Numbers are slimd's, above 0. Its sockets can be made from now on."""
        if workload < 1:
            raise ValueError(f"{workload} cannot name a workload")
        # In this order: from here on the thread does not remove the cgroup of a predecessor.
        self.maker.add(workload, shaping)
        make_threaded(self.places.workload(workload))

    def drop_workload(self, workload: int) -> None:
        """Routes, inbound flows and stock go; sockets that live can connect nowhere any more."""
        self.maker.drop(workload)
        self.flush_routes(workload)
        inbound = self._maps["inbound"]
        for key in list(inbound.keys()):
            value = inbound.get(key)
            if value is not None and layouts.workload_of_inbound(value) == workload:
                inbound.discard(key)

    # Routes and inbound flows.

    def add_route(self, route: Route) -> None:
        self._maps["routes"].set(route.key(), route.value())

    def drop_route(self, workload: int, destination: Endpoint) -> bool:
        """Whether there was one."""
        return self._maps["routes"].discard(layouts.route_key(workload, destination))

    def flush_routes(self, workload: int) -> int:
        """How many there were. Established connections are not touched."""
        routes = self._maps["routes"]
        mine = [key for key in list(routes.keys()) if layouts.workload_of_route(key) == workload]
        return sum(routes.discard(key) for key in mine)

    def add_inbound(self, flow: InboundFlow) -> None:
        self._maps["inbound"].set(flow.key(), flow.value())

    def drop_inbound(self, flow: int) -> bool:
        """Whether there was one: also handshakes that have begun do not end."""
        return self._maps["inbound"].discard(layouts.pack_number(flow))

    # Sockets.

    def make_listener(
        self, workload: int, family: int, host: Endpoint, overlay: Endpoint, *, backlog: int
    ) -> socket.socket:
        """A sealed, listening socket at `host` that says `overlay`; the caller owns it.

        OSError (EADDRINUSE ...) as of bind(2) and listen(2).
        """
        sock = self.maker.make_open(workload, family)
        try:
            text = str(host.address)
            mapped = family == socket.AF_INET6 and host.address.version == 4
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((f"::ffff:{text}" if mapped else text, host.port))
            sock.listen(backlog)
            self.seal(sock, workload, SocketFlag.LISTENER, local=overlay)
        except OSError:
            sock.close()
            raise
        return sock

    def seal(
        self,
        sock: socket.socket,
        workload: int,
        flags: SocketFlag = SEALED,
        *,
        local: Endpoint | None = None,
        remote: Endpoint | None = None,
        host_port: int = 0,
        shaping: Shaping = NO_SHAPING,
    ) -> None:
        """From now on the programs confine the socket, for good; borrows it.

        With OPEN it is slimd's alone again, until the next call.
        """
        record = layouts.socket_record(
            workload, flags, local=local, remote=remote, host_port=host_port, shaping=shaping
        )
        self._maps["sockets"].set(layouts.pack_number(sock.fileno()), record)

    def local_port(self, sock: socket.socket) -> int:
        """The overlay port that the socket was given; 0: that of the host socket. Borrows it."""
        record = self._maps["sockets"].get(layouts.pack_number(sock.fileno()))
        return 0 if record is None else layouts.local_port(record)

    # Keys.

    def set_sealing_key(self, peer: int, key_id: int, key: bytes, lifetime_s: float) -> None:
        """What seals SYNs to that peer from the next one on; 16 bytes."""
        value = layouts.sealing_key(key, _deadline(lifetime_s), key_id)
        self._maps["sealing_keys"].set(layouts.pack_number(peer), value)

    def add_opening_key(self, peer: int, key_id: int, key: bytes, lifetime_s: float) -> None:
        """Accepted from that peer beside those before it, for its lifetime and a grace.

        The order for a renewal without loss: the acceptor adds, acknowledges, the sender seals.
        """
        value = layouts.opening_key(key, _deadline(lifetime_s + KEY_GRACE_S))
        self._maps["opening_keys"].set(layouts.key_name(peer, key_id), value)

    def drop_opening_key(self, peer: int, key_id: int) -> bool:
        return self._maps["opening_keys"].discard(layouts.key_name(peer, key_id))

    def drop_peer(self, peer: int) -> None:
        """Forget every key of that peer."""
        self._maps["sealing_keys"].discard(layouts.pack_number(peer))
        for name in list(self._maps["opening_keys"].keys()):
            if layouts.unpack_key_name(name)[0] == peer:
                self._maps["opening_keys"].discard(name)

    # What happened.

    def counters(self) -> dict[Counter, int]:
        """Since the programs were first loaded."""
        cpus = possible_cpus()
        counters = self._maps["counters"]
        return {
            which: sum(counters.read_per_cpu(layouts.pack_number(which), cpus)) for which in Counter
        }

    def close(self) -> None:
        """End the thread, close the maps; what is pinned stays."""
        self.maker.close()
        for opened in self._maps.values():
            opened.close()

    def __enter__(self) -> Guard:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def install(places: Places, program: Path) -> None:
    """Load the object; attach its programs, or exchange those that are attached, one by one.

    An exchange is atomic per program (BPF_LINK_UPDATE): no packet and no call passes between.
    """
    cgroup = os.open(places.attached, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with bpf.Object(program, places.maps) as loaded:
            for name in loaded.program_names():
                pin = places.links / name
                if not pin.exists():
                    loaded.attach(name, cgroup, pin)
                    continue
                link = bpf.Link.open(pin)
                try:
                    link.update(loaded.program(name))
                finally:
                    link.close()
    finally:
        os.close(cgroup)


def possible_cpus() -> int:
    """The CPUs that per-CPU maps have values for, such as 0-3 or 0."""
    with open(POSSIBLE_CPUS) as file:
        last = file.read().strip().replace(",", "-").rpartition("-")[2]
    return int(last) + 1


def _deadline(lifetime_s: float) -> int:
    """CLOCK_MONOTONIC, which bpf_ktime_get_ns reads."""
    return min(time.monotonic_ns() + int(lifetime_s * 1e9), NEVER)
