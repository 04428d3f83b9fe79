"""What the kernel enforces of one TCP socket's sending: rate, DSCP and priority (socket(7), ip(7)).

Constants: asm-generic/socket.h, linux/in6.h.
"""

from __future__ import annotations

import socket
import struct

from slim.broker.kernel.socket_options import SO_MAX_PACING_RATE

LIMIT_OPTIONS = (
    (socket.SOL_SOCKET, SO_MAX_PACING_RATE),
    (socket.SOL_SOCKET, socket.SO_PRIORITY),
    (socket.IPPROTO_IP, socket.IP_TOS),
    (socket.IPPROTO_IPV6, socket.IPV6_TCLASS),
)
"""(level, option) of setsockopt calls that could undo a limit.

TCP_CONGESTION is not among them: no congestion control goes beyond SO_MAX_PACING_RATE.
"""

UNPACED = (1 << 64) - 1
"""As the kernel reads out a socket without a rate: ~0UL."""
_ULONG = struct.Struct("=Q")


def read_rate(sock: socket.socket) -> int:
    """SO_MAX_PACING_RATE, 64 bits wide since Linux 4.20: bytes per second, or UNPACED."""
    rate: int = _ULONG.unpack(sock.getsockopt(socket.SOL_SOCKET, SO_MAX_PACING_RATE, 8))[0]
    return rate


def set_rate(sock: socket.socket, rate: int) -> None:
    """SO_MAX_PACING_RATE, Linux 3.13 (TCP paces by itself from 4.13): bytes per second."""
    sock.setsockopt(socket.SOL_SOCKET, SO_MAX_PACING_RATE, _ULONG.pack(rate))


def read_dscp(sock: socket.socket) -> int:
    """The upper six bits of IP_TOS or IPV6_TCLASS, whichever the connection's packets carry."""
    if sock.family == socket.AF_INET6 and not _is_mapped(sock):
        return sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS) >> 2
    return sock.getsockopt(socket.IPPROTO_IP, socket.IP_TOS) >> 2


def set_dscp(sock: socket.socket, dscp: int) -> None:
    """IP_TOS and, of an AF_INET6 socket, IPV6_TCLASS, Linux 2.6.14; TCP keeps its ECN bits."""
    value = dscp << 2
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, value)
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, value)


def read_priority(sock: socket.socket) -> int:
    """SO_PRIORITY of socket(7), Linux 2.2."""
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY)


def set_priority(sock: socket.socket, priority: int) -> None:
    """SO_PRIORITY of socket(7), Linux 2.2."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY, priority)


def set_mark(sock: socket.socket, mark: int) -> None:
    """SO_MARK of socket(7), Linux 2.6.25; needs CAP_NET_ADMIN."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)


def _is_mapped(sock: socket.socket) -> bool:
    try:
        return str(sock.getpeername()[0]).startswith("::ffff:")
    except OSError:
        return False
