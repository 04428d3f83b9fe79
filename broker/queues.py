"""What a whole workload may send: an HTB class for each, chosen by SO_MARK, on the host's devices.

Counterpart: limiting.py, which marks the sockets. The queueing discipline is ours by its handle;
one that the administrator chose is never replaced. It stays when slimd ends, and so does the
limit; the next slimd takes it over or away. Source: tc-htb(8), tc-bpf(8).
"""

from __future__ import annotations

import asyncio
import errno
import logging
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from slim.broker.errors import KernelFeatureMissing, SlimError
from slim.broker.kernel.classifier import classify_by_mark
from slim.broker.kernel.namespaces import CLONE_NEWNET, unshare

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from slim.broker.control_links import KeeperClient
    from slim.broker.endpoints import Address

log = logging.getLogger(__name__)

MAJOR = 0x5105
ROOT = MAJOR << 16
MARK_BASE = MAJOR << 16
"""A socket's mark is this and the number of its class; a class's handle is the same number."""
MAX_CLASS = 0xFFFE
_KEPT = "queues"
"""In the keeper, while there are classes."""
_UNKNOWN = {0: 0}
"""Equal to no limits that anybody could want."""
_MIN_BURST = 128 * 1024
"""Two segments as large as TCP makes them; less would hold them back for ever."""
_BURSTS_PER_S = 250
_QUANTUM = 60_000
_NOT_CHOSEN = 0
"""The handle of a queueing discipline that the kernel put there itself."""


def mark_of(index: int) -> int:
    """The mark of sockets of the workload with that index on this host."""
    if not 0 <= index < MAX_CLASS:
        raise SlimError(
            f"workload number {index} cannot have a limit of its own",
            hint=f"the kernel has {MAX_CLASS} classes on a device: limit fewer workloads",
        )
    return MARK_BASE | (index + 1)


@dataclass(slots=True)
class Queues:
    """The classes of this host's workloads, on every device that has one of the addresses."""

    addresses: tuple[Address, ...]
    keeper: KeeperClient
    _applied: dict[int, int] | None = None
    """By mark, in bytes per second; None: nobody has looked yet."""

    async def apply(self, rates: Mapping[int, int]) -> None:
        """Have these limits in force, by mark; SlimError says why they cannot be."""
        if self._applied == rates or (self._applied is None and not rates):
            return
        self._applied = _UNKNOWN
        await self.keeper.store(_KEPT, b"")
        await asyncio.to_thread(put_in_force, self.addresses, dict(rates))
        self._applied = dict(rates)
        if not rates:
            await self.keeper.drop(_KEPT)
        log.info("%d workloads are limited by HTB", len(rates))

    def take_over(self, held: list[tuple[str, bytes, list[int]]]) -> None:
        """Know what a predecessor left: the next `apply` changes it, or takes it away."""
        if any(name == _KEPT for name, _, _ in held):
            self._applied = _UNKNOWN


def put_in_force(addresses: tuple[Address, ...], rates: Mapping[int, int]) -> None:
    """Make classes, change their rates, and take away those of nobody; blocks."""
    with _opened("limit workloads") as route:
        for index, name in _devices(route, addresses):
            _prepare(route, index, name, wanted=bool(rates))
            if rates:
                _set_classes(route, index, rates)


def check(addresses: tuple[Address, ...]) -> None:
    """SlimError when workloads cannot be limited here. Changes nothing; blocks."""
    if missing := probe():
        raise KernelFeatureMissing(missing[0], hint=missing[1])
    with _opened("look at queueing disciplines") as route:
        for index, name in _devices(route, addresses):
            kind, handle = _root(route, index) or ("none", _NOT_CHOSEN)
            if handle not in (_NOT_CHOSEN, ROOT):
                raise _taken(name, kind)


def probe() -> tuple[str, str] | None:
    """What is missing and the remedy, tried in a network namespace made for it; blocks."""
    found: list[SlimError] = []

    def run() -> None:
        # The namespace ends with the thread.
        try:
            unshare(CLONE_NEWNET)
            put_in_force((), {mark_of(0): 1_000_000})
        except SlimError as error:
            found.append(error)
        except OSError as error:
            found.append(SlimError(f"cannot make a namespace: {error}", hint="it takes root"))

    thread = threading.Thread(target=run, name="slim-probe-queues")
    thread.start()
    thread.join()
    return (found[0].message, found[0].hint) if found else None


def _taken(name: str, kind: str) -> SlimError:
    return SlimError(
        f"the workloads' limits need the queueing discipline of {name}, which is {kind}",
        hint=f"take it away (tc qdisc del dev {name} root), or leave [[shaping.container]] out",
    )


def _prepare(route: Any, index: int, name: str, *, wanted: bool) -> None:
    kind, handle = _root(route, index) or ("none", _NOT_CHOSEN)
    if handle == ROOT:
        if not wanted:
            route.tc("del", "htb", index, ROOT)
        return
    if not wanted:
        return
    if handle != _NOT_CHOSEN:
        raise _taken(name, kind)
    # Whatever has no mark of ours is not held up: class 0 does not exist.
    route.tc("add", "htb", index, ROOT, default=0)
    try:
        classify_by_mark(index, ROOT, 0xFFFF_0000)
    except OSError:
        # Classes that nothing is put into would be a limit in name only.
        route.tc("del", "htb", index, ROOT)
        raise


def _set_classes(route: Any, index: int, rates: Mapping[int, int]) -> None:
    known = {
        one["handle"]
        for one in route.get_classes(index=index)
        if one["handle"] >> 16 == MAJOR and one["handle"] != ROOT
    }
    for gone in known - rates.keys():
        route.tc("del-class", index=index, handle=gone, parent=ROOT)
    for mark, rate in rates.items():
        burst = max(_MIN_BURST, rate // _BURSTS_PER_S)
        route.tc(
            "change-class" if mark in known else "add-class",
            "htb",
            index,
            mark,
            parent=ROOT,
            rate=rate,
            ceil=rate,
            burst=burst,
            cburst=burst,
            quantum=_QUANTUM,
        )


def _devices(route: Any, addresses: tuple[Address, ...]) -> list[tuple[int, str]]:
    """Those with the addresses; and the loopback, by which workloads of one host reach another."""
    wanted = {str(address) for address in addresses}
    found = {one["index"] for one in route.get_addr() if one.get_attr("IFA_ADDRESS") in wanted} | {
        *route.link_lookup(ifname="lo")
    }
    return [
        (index, str(route.link("get", index=index)[0].get_attr("IFLA_IFNAME")))
        for index in sorted(found)
    ]


def _root(route: Any, index: int) -> tuple[str, int] | None:
    """Kind and handle of a device's root queueing discipline."""
    for one in route.get_qdiscs(index=index):
        # TC_H_ROOT of linux/pkt_sched.h.
        if one["parent"] == 0xFFFF_FFFF:
            return str(one.get_attr("TCA_KIND")), int(one["handle"])
    return None


@contextmanager
def _opened(what: str) -> Iterator[Any]:
    """A route socket of this thread's namespace; what the kernel refuses is a SlimError."""
    # 0.15 s, which only those pay who limit workloads.
    from pyroute2 import IPRoute
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        with IPRoute() as route:
            yield route
    except (NetlinkError, OSError) as error:
        code = error.code if isinstance(error, NetlinkError) else error.errno
        if code in (errno.ENOENT, errno.EOPNOTSUPP):
            raise KernelFeatureMissing(
                f"cannot {what}: the kernel has no HTB, or no BPF classifier",
                hint="it takes CONFIG_NET_SCH_HTB and CONFIG_NET_CLS_BPF (sch_htb, cls_bpf)",
            ) from None
        raise SlimError(f"cannot {what}: {error}", hint="it takes root (CAP_NET_ADMIN)") from None
