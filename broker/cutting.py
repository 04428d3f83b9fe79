"""Ends live connections from outside: SOCK_DESTROY, in the namespace that each was born in.

The program's end gets ECONNABORTED (ECONNRESET where the kernel has no SOCK_DESTROY), the peer's
a reset. What is meant is a socket, by its cookie: never one that took its place.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from slim.broker.connections import pack
from slim.broker.kernel import sock_diag
from slim.broker.kernel.disconnect import disconnect_all
from slim.broker.kernel.namespaces import in_namespace

if TYPE_CHECKING:
    from collections.abc import Iterable

    from slim.broker.connections import ConnectionRecord, PackedEndpoint
    from slim.broker.kernel.sock_diag import TcpSocket
    from slim.broker.registry import Registry

log = logging.getLogger(__name__)

HOST = 0
"""In the place of a workload: the host's own namespace."""


@dataclass(frozen=True, slots=True)
class Victim:
    """A connection to end, and why."""

    record: ConnectionRecord
    rule: str
    sock: TcpSocket


def local_end(record: ConnectionRecord, sock: TcpSocket) -> PackedEndpoint:
    """The overlay endpoint at this end; the kernel chose it later if the overlay carries it."""
    return record.local if record.local[1] else pack(sock.local)


async def cut(registry: Registry, victims: Iterable[Victim]) -> set[int]:
    """End them, beside the event loop; the cookies of those that were still there."""
    groups: dict[int, list[TcpSocket]] = defaultdict(list)
    for victim in victims:
        is_fast = victim.record.path == "fast"
        groups[HOST if is_fast else victim.record.workload].append(victim.sock)
    ended: set[int] = set()
    with contextlib.ExitStack() as open_fds:
        for cookie, sockets in groups.items():
            namespace = None
            if cookie != HOST:
                workload = registry.workloads.get(cookie)
                if workload is None:
                    continue
                # The workload may go while the thread works, and its fd with it.
                namespace = os.dup(workload.netns_fd)
                open_fds.callback(os.close, namespace)
            ended |= await asyncio.to_thread(_end, namespace, sockets)
    return ended


def _end(namespace: int | None, sockets: list[TcpSocket]) -> set[int]:
    """In the namespace, or the host's."""
    try:
        with in_namespace(namespace) if namespace is not None else contextlib.nullcontext():
            if _destroys():
                return sock_diag.destroy_many(sockets)
    except OSError as error:
        log.error("connections not ended: %s", error)
        return set()
    inodes = {sock.inode: sock.cookie for sock in sockets if sock.inode}
    return {inodes[inode] for inode in disconnect_all(inodes)}


@functools.cache
def _destroys() -> bool:
    if sock_diag.can_destroy():
        return True
    log.info("this kernel has no SOCK_DESTROY: connections are ended through the programs' fds")
    return False
