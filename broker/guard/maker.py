"""Makes host sockets in workloads' cgroups, ahead of need.

A socket belongs to the cgroup of the thread that makes it, for good. One thread moves from
workload to workload (0.05 ms) and keeps a few sockets of each family in stock, so that whoever
needs one only takes it. The thread makes them in the network namespace of the process.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections import deque
from typing import TYPE_CHECKING

from slim.broker.errors import SlimError
from slim.broker.guard import layouts
from slim.broker.guard.layouts import NO_SHAPING, Shaping, SocketFlag
from slim.broker.guard.places import write

if TYPE_CHECKING:
    from pathlib import Path

    from slim.broker.guard.places import Places
    from slim.broker.kernel.bpf_maps import Map

STOCK = 8
"""Per workload and family that was ever asked for; an fd each."""
# From linux/tcp.h.
TCP_FASTOPEN_NO_COOKIE = 34


class _Order:
    """One socket that is made while somebody waits."""

    def __init__(self, workload: int, family: int) -> None:
        self.workload = workload
        self.family = family
        self.sock: socket.socket | None = None
        self.error = ""
        self.done = threading.Event()


class Maker:
    """The thread and its stock. Borrows the map of sockets, which must outlive `close`."""

    def __init__(self, places: Places, sockets: Map, *, stock: int = STOCK) -> None:
        self._places = places
        self._sockets = sockets
        self._size = stock
        self._changed = threading.Condition()
        self._stock: dict[tuple[int, int], deque[socket.socket]] = {}
        self._shaping: dict[int, Shaping] = {}
        self._orders: deque[_Order] = deque()
        self._dropped: deque[int] = deque()
        self._error: str = ""
        self._running = True
        # Readable when a stock was filled: for loops that park what found it empty.
        self.filled = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._thread = threading.Thread(target=self._run, name="slim-maker", daemon=True)
        self._thread.start()

    def add(self, workload: int, shaping: Shaping = NO_SHAPING) -> None:
        """From now on the workload's sockets can be taken; its cgroup exists."""
        with self._changed:
            self._shaping[workload] = shaping
            with contextlib.suppress(ValueError):
                self._dropped.remove(workload)

    def drop(self, workload: int) -> None:
        """Close the stock of a workload, and remove its cgroup, which its sockets keep alive."""
        with self._changed:
            self._shaping.pop(workload, None)
            self._dropped.append(workload)
            self._changed.notify_all()
            stale = [key for key in self._stock if key[0] == workload]
            sockets = [sock for key in stale for sock in self._stock.pop(key)]
        for sock in sockets:
            sock.close()

    def take(self, workload: int, family: int) -> socket.socket | None:
        """A sealed socket for connecting, owned by the caller; None: ask again after `filled`."""
        with self._changed:
            if workload not in self._shaping:
                raise ValueError(f"workload {workload} is not guarded")
            stock = self._stock.setdefault((workload, family), deque())
            sock = stock.popleft() if stock else None
            if len(stock) <= self._size // 2:
                self._changed.notify_all()
            if sock is None and self._error:
                error, self._error = self._error, ""
                raise SlimError(error)
            return sock

    def wait(self, workload: int, family: int, timeout_s: float = 5) -> socket.socket:
        """As take, but waits for the thread: not for a loop that serves others."""
        with self._changed:
            sock = self.take(workload, family)
            if sock is not None:
                return sock
            self._changed.wait_for(
                lambda: self._error or self._stock.get((workload, family)), timeout_s
            )
            sock = self.take(workload, family)
        if sock is None:
            raise SlimError(f"no socket was made for workload {workload} in {timeout_s} s")
        return sock

    def make_open(self, workload: int, family: int) -> socket.socket:
        """A socket that is still slimd's alone (to bind and to listen), owned by the caller."""
        order = _Order(workload, family)
        with self._changed:
            if workload not in self._shaping:
                raise ValueError(f"workload {workload} is not guarded")
            self._orders.append(order)
            self._changed.notify_all()
        order.done.wait()
        if order.sock is None:
            raise SlimError(f"no socket could be made for workload {workload}: {order.error}")
        return order.sock

    def close(self) -> None:
        """End the thread and close what is in stock."""
        with self._changed:
            self._running = False
            self._changed.notify_all()
        self._thread.join()
        for stock in self._stock.values():
            for sock in stock:
                sock.close()
        self._stock.clear()
        os.close(self.filled)

    def _run(self) -> None:
        here = 0
        while True:
            with self._changed:
                self._changed.wait_for(self._has_work)
                if not self._running:
                    break
                if self._dropped:
                    here = self._leave(here)
                    continue
                order = self._orders.popleft() if self._orders else None
                workload, family = (order.workload, order.family) if order else self._next_lack()
            try:
                if workload != here:
                    self._move(self._places.workload(workload))
                    here = workload
                if order is None:
                    self._fill(workload, family)
                else:
                    order.sock = self._make(workload, family, SocketFlag.OPEN)
            except (OSError, SlimError) as error:
                here = 0
                self._give_up(str(error), order)
            if order is not None:
                order.done.set()
        with contextlib.suppress(SlimError):
            self._move(self._places.domain)

    def _has_work(self) -> bool:
        return bool(
            not self._running or self._orders or self._dropped or self._next_lack() != (0, 0)
        )

    def _next_lack(self) -> tuple[int, int]:
        """The workload and family whose stock is short, or (0, 0)."""
        if self._error:
            return 0, 0
        return next(
            (key for key, stock in self._stock.items() if len(stock) <= self._size // 2), (0, 0)
        )

    def _leave(self, here: int) -> int:
        """Remove the cgroup of a workload that ended; gives where the thread is.

        Under the lock: a workload that comes again adds itself before it makes its cgroup.
        """
        workload = self._dropped.popleft()
        cgroup = self._places.workload(workload)
        # A socket keeps a removed cgroup, and the programs with it, alive (cgroup v2).
        with contextlib.suppress(OSError, SlimError):
            if here == workload:
                self._move(self._places.domain)
                here = 0
            cgroup.rmdir()
        return here

    def _move(self, cgroup: Path) -> None:
        write(cgroup / "cgroup.threads", str(threading.get_native_id()))

    def _fill(self, workload: int, family: int) -> None:
        made: list[socket.socket] = []
        with self._changed:
            lack = self._size - len(self._stock.get((workload, family), ()))
        try:
            while lack > len(made):
                made.append(self._make(workload, family, SocketFlag(0)))
        finally:
            self._put_in_stock(workload, family, made)
        os.eventfd_write(self.filled, 1)

    def _put_in_stock(self, workload: int, family: int, made: list[socket.socket]) -> None:
        with self._changed:
            stock = self._stock.get((workload, family))
            if stock is None:
                for sock in made:
                    sock.close()
                return
            stock.extend(made)
            self._changed.notify_all()

    def _make(self, workload: int, family: int, flags: SocketFlag) -> socket.socket:
        shaping = self._shaping.get(workload, NO_SHAPING)
        sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            # A socket without a record may do nothing at all: so open it first, seal it last.
            key = layouts.pack_number(sock.fileno())
            self._sockets.set(key, layouts.socket_record(workload, SocketFlag.OPEN))
            # MSG_FASTOPEN then needs no room among the SYN's options, which the guard's takes.
            sock.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN_NO_COOKIE, 1)
            self._sockets.set(key, layouts.socket_record(workload, flags, shaping=shaping))
        except OSError:
            sock.close()
            raise
        return sock

    def _give_up(self, text: str, order: _Order | None) -> None:
        """A cgroup went away, or no fds are left: whoever asks next is told, once."""
        if order is not None:
            order.error = text
            return
        with self._changed:
            self._error = text
            self._changed.notify_all()
