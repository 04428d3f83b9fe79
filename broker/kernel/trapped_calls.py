"""Which system calls Slim's filter traps and refuses: seccomp_filter.py builds it for slim-run,
oci/profile.py writes it into a runtime's profile, calls.py reads what comes of it.
"""

from __future__ import annotations

import socket

MSG_FASTOPEN = 0x20000000

TRAPPED = (
    "accept",
    "accept4",
    "bind",
    "connect",
    "epoll_create",
    "epoll_create1",
    "getpeername",
    "getsockname",
    "listen",
)

TRAPPED_WITH_FASTOPEN = {"sendmmsg": 3, "sendmsg": 2, "sendto": 3}
"""Calls that connect if their flags say MSG_FASTOPEN -> the number of the flags argument."""

# From asm-generic/socket.h, linux/in.h, linux/in6.h and linux/tcp.h.
IPV6_TRANSPARENT = 75
IP_TRANSPARENT = 19
SO_ATTACH_REUSEPORT_CBPF = 51
SO_ATTACH_REUSEPORT_EBPF = 52
SO_BINDTODEVICE = 25
SO_BINDTOIFINDEX = 62
SO_MARK = 36
TCP_FASTOPEN_CONNECT = 30
TCP_REPAIR = 19

TRAPPED_OPTIONS = (
    (socket.SOL_SOCKET, SO_ATTACH_REUSEPORT_CBPF),
    (socket.SOL_SOCKET, SO_ATTACH_REUSEPORT_EBPF),
    (socket.SOL_SOCKET, SO_BINDTODEVICE),
    (socket.SOL_SOCKET, SO_BINDTOIFINDEX),
    (socket.SOL_SOCKET, SO_MARK),
    (socket.IPPROTO_IP, IP_TRANSPARENT),
    (socket.IPPROTO_IPV6, IPV6_TRANSPARENT),
    (socket.IPPROTO_TCP, TCP_FASTOPEN_CONNECT),
    (socket.IPPROTO_TCP, TCP_REPAIR),
)
"""(level, option) of setsockopt calls that could turn a host socket against the host."""

TRAPPED_READS = ((socket.IPPROTO_IPV6, socket.IPV6_V6ONLY),)
"""(level, option) of getsockopt calls that would show what only the host socket has."""

REFUSED = ("io_uring_enter", "io_uring_register", "io_uring_setup")
"""Calls that fail with ENOSYS, in every architecture."""
