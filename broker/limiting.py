"""Puts the limits of a connection on its socket, before the program can send on it.

Counterpart for connections that live: enforcing.py (control). A rate is SO_MAX_PACING_RATE,
which TCP paces by itself since Linux 4.13, without a queueing discipline.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from slim.broker.kernel import pacing
from slim.broker.shaping import smaller

if TYPE_CHECKING:
    import socket

    from slim.broker.actions import SetWithinLimits
    from slim.broker.shaping import Shaping


def limit(sock: socket.socket, shaping: Shaping | None, peer_rate: int | None) -> None:
    """Set what policy says; a lower rate that the program chose itself stays. Borrows `sock`."""
    rate = smaller(shaping.send if shaping else None, peer_rate)
    if rate is not None and pacing.read_rate(sock) > rate:
        pacing.set_rate(sock, rate)
    if shaping is None:
        return
    if shaping.dscp is not None:
        pacing.set_dscp(sock, shaping.dscp)
    if shaping.priority is not None:
        # After the DSCP, from which the kernel derives a priority of its own (ip(7), IP_TOS).
        pacing.set_priority(sock, shaping.priority)


def mark(sock: socket.socket, number: int) -> None:
    """Have a host socket counted to its workload's limit (queues.py), if it has one; borrows."""
    if number:
        pacing.set_mark(sock, number)


def set_within(sock: socket.socket, asked: SetWithinLimits) -> None:
    """setsockopt(2) as the program asked, then the limits again; OSError as the kernel says."""
    sock.setsockopt(asked.level, asked.option, asked.value)
    if asked.record is not None:
        # The limit comes a moment after what was asked, before the program's call returns.
        limit(sock, asked.record.shaping, asked.record.peer_rate)
