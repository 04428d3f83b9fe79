"""Decoded socket calls: what was asked. The counterpart is actions.py: what will be done.

Everything the target owns is read here, once, bounded by the kernel's own limits, and copied;
later stages see owned values only. Whoever uses what was read checks first that the notification
is still valid (seccomp_notify.is_valid): until then the bytes may be another process's.
"""

from __future__ import annotations

import platform
import socket
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from slim.broker.kernel import sockaddr
from slim.broker.kernel.pacing import LIMIT_OPTIONS
from slim.broker.kernel.process_memory import process_vm_readv
from slim.broker.kernel.trapped_calls import TRAPPED_OPTIONS, TRAPPED_READS

if TYPE_CHECKING:
    from collections.abc import Callable

    from slim.broker.endpoints import Endpoint
    from slim.broker.kernel.seccomp_notify import Notification

MAX_LIMIT_BYTES = 8
"""SO_MAX_PACING_RATE takes 8 or 4 bytes, the others 4 (socket(7), ip(7))."""

# From linux/audit.h: e_machine, 64 bit, little endian.
AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

# System call numbers: asm/unistd_64.h and asm-generic/unistd.h.
_NUMBERS = {
    "x86_64": {
        "ioctl": 16,
        "connect": 42,
        "accept": 43,
        "sendto": 44,
        "sendmsg": 46,
        "bind": 49,
        "listen": 50,
        "getsockname": 51,
        "getpeername": 52,
        "setsockopt": 54,
        "getsockopt": 55,
        "epoll_create": 213,
        "accept4": 288,
        "epoll_create1": 291,
        "sendmmsg": 307,
    },
    "aarch64": {
        "epoll_create1": 20,
        "ioctl": 29,
        "bind": 200,
        "listen": 201,
        "accept": 202,
        "connect": 203,
        "getsockname": 204,
        "getpeername": 205,
        "sendto": 206,
        "setsockopt": 208,
        "getsockopt": 209,
        "sendmsg": 211,
        "accept4": 242,
        "sendmmsg": 269,
    },
}

# Of a machine: the compat architecture (i386, arm), and of its calls those that are trapped: asm/
# unistd_32.h, and arm's asm/unistd-eabi.h.
_COMPAT = {
    "x86_64": (
        0x40000003,
        {102: "socketcall", 364: "accept4", 367: "getsockname", 368: "getpeername"},
    ),
    "aarch64": (
        0x40000028,
        {285: "accept", 286: "getsockname", 287: "getpeername", 366: "accept4"},
    ),
}
# What socketcall is told to do, and how many arguments it has then: linux/net.h, net/socket.c.
_SOCKETCALLS = {
    5: ("accept", 3),
    6: ("getsockname", 3),
    7: ("getpeername", 3),
    18: ("accept4", 4),
}


@dataclass(slots=True)
class Connect:
    fd: int
    family: int
    """As written in the address: AF_UNSPEC asks to disconnect."""
    destination: Endpoint | None
    """None: not an IPv4 or IPv6 address."""


@dataclass(slots=True)
class Bind:
    fd: int
    local: Endpoint | None


@dataclass(slots=True)
class Listen:
    fd: int
    backlog: int


@dataclass(slots=True)
class Accept:
    fd: int
    address: int
    """Where the program wants the peer's address; 0: nowhere."""
    length: int
    flags: int


@dataclass(slots=True)
class GetName:
    fd: int
    address: int
    length: int
    peer: bool


@dataclass(slots=True)
class CreateEpoll:
    flags: int


@dataclass(slots=True)
class FastOpenSend:
    """sendto, sendmsg or sendmmsg with MSG_FASTOPEN: a connect in disguise."""

    fd: int


@dataclass(slots=True)
class SetOption:
    """A setsockopt that could turn a host socket against the host, or cannot be read back."""

    fd: int


@dataclass(slots=True)
class SetLimit:
    """A setsockopt of rate, priority or DSCP, which policy may limit."""

    fd: int
    level: int
    option: int
    value: bytes
    """What the kernel would read of the program's value: at most MAX_LIMIT_BYTES."""


@dataclass(slots=True)
class InterfaceRequest:
    """An ioctl that shows or changes the interfaces of the socket's network namespace."""

    fd: int


@dataclass(slots=True)
class GetV6Only:
    """getsockopt(IPV6_V6ONLY), which a host listener never has set."""

    fd: int
    value: int
    """Where the program wants the number, and below: its length."""
    length: int


SocketCall: TypeAlias = (
    Connect
    | Bind
    | Listen
    | Accept
    | GetName
    | CreateEpoll
    | FastOpenSend
    | SetOption
    | SetLimit
    | InterfaceRequest
    | GetV6Only
)

Args: TypeAlias = tuple[int, int, int, int, int, int]


def decode(notification: Notification) -> SocketCall | None:
    """The call behind a notification; None for one of another architecture, or not of the trap set.

    Raises OSError EFAULT (the program's own bad pointer) or ESRCH when memory cannot be read.
    """
    if notification.arch != _ARCH:
        return _decode_compat(notification)
    decoder = _DECODERS.get(notification.nr)
    return decoder(notification.tid, notification.args) if decoder else None


def fd_of(notification: Notification) -> int:
    """The fd that a trapped call is made on; of epoll_create, its size or flags; of socketcall,
    what to do.
    """
    return _int(notification.args[0])


def _decode_compat(notification: Notification) -> SocketCall | None:
    """A call on what native ones may have put behind the fd before an exec, or in this process.

    Pointers are narrower there, sockaddr and socklen_t are the same.
    """
    if notification.arch != _COMPAT_ARCH:
        return None
    name, args = _COMPAT_NAMES.get(notification.nr, ""), notification.args
    if name == "socketcall":
        name, count = _SOCKETCALLS.get(_int(args[0]), ("", 0))
        raw = process_vm_readv(notification.tid, args[1], 4 * count) if count else b""
        a, b, c, d = struct.unpack("=4I", raw.ljust(16, b"\0"))
        args = (a, b, c, d, 0, 0)
    decoder = _BY_NAME.get(name)
    return decoder(notification.tid, args) if decoder else None


def _int(value: int) -> int:
    """A C int argument: the kernel looks at the low 32 bits only."""
    value &= 0xFFFFFFFF
    return value - (1 << 32) if value & 0x80000000 else value


def _read_address(tid: int, pointer: int, length: int) -> bytes:
    length = _int(length)
    if not 2 <= length <= sockaddr.MAX_SOCKADDR:
        # The kernel answers such lengths itself (EINVAL), before it looks at the memory.
        return b""
    return process_vm_readv(tid, pointer, length)


def _connect(tid: int, args: Args) -> SocketCall:
    raw = _read_address(tid, args[1], args[2])
    family = sockaddr.family_of(raw) if raw else -1
    return Connect(_int(args[0]), family, sockaddr.decode(raw))


def _bind(tid: int, args: Args) -> SocketCall:
    return Bind(_int(args[0]), sockaddr.decode(_read_address(tid, args[1], args[2])))


def _listen(tid: int, args: Args) -> SocketCall:
    return Listen(_int(args[0]), _int(args[1]))


def _accept(tid: int, args: Args) -> SocketCall:
    return Accept(_int(args[0]), args[1], args[2], 0)


def _accept4(tid: int, args: Args) -> SocketCall:
    return Accept(_int(args[0]), args[1], args[2], _int(args[3]))


def _getsockname(tid: int, args: Args) -> SocketCall:
    return GetName(_int(args[0]), args[1], args[2], peer=False)


def _getpeername(tid: int, args: Args) -> SocketCall:
    return GetName(_int(args[0]), args[1], args[2], peer=True)


def _epoll_create(tid: int, args: Args) -> SocketCall:
    # The size is ignored since Linux 2.6.8, but must be positive (epoll_create(2)).
    return CreateEpoll(0 if _int(args[0]) > 0 else -1)


def _epoll_create1(tid: int, args: Args) -> SocketCall:
    return CreateEpoll(_int(args[0]))


def _fast_open_send(tid: int, args: Args) -> SocketCall:
    return FastOpenSend(_int(args[0]))


def _setsockopt(tid: int, args: Args) -> SocketCall | None:
    fd, level, option = _int(args[0]), _int(args[1]), _int(args[2])
    if (level, option) in TRAPPED_OPTIONS:
        return SetOption(fd)
    if (level, option) not in LIMIT_OPTIONS:
        # An OCI profile cannot tell these by level and option both.
        return None
    length = _int(args[4])
    if not 0 <= length <= MAX_LIMIT_BYTES:
        # Negative: EINVAL, as of an empty value. Of a long value the kernel reads an int.
        length = 4 if length > 0 else 0
    return SetLimit(fd, level, option, process_vm_readv(tid, args[3], length) if length else b"")


def _ioctl(tid: int, args: Args) -> SocketCall:
    return InterfaceRequest(_int(args[0]))


def _getsockopt(tid: int, args: Args) -> SocketCall | None:
    if (_int(args[1]), _int(args[2])) not in TRAPPED_READS:
        return None
    return GetV6Only(_int(args[0]), args[3], args[4])


_BY_NAME: dict[str, Callable[[int, Args], SocketCall | None]] = {
    "connect": _connect,
    "accept": _accept,
    "sendto": _fast_open_send,
    "sendmsg": _fast_open_send,
    "bind": _bind,
    "listen": _listen,
    "getsockname": _getsockname,
    "getpeername": _getpeername,
    "setsockopt": _setsockopt,
    "getsockopt": _getsockopt,
    "ioctl": _ioctl,
    "epoll_create": _epoll_create,
    "accept4": _accept4,
    "epoll_create1": _epoll_create1,
    "sendmmsg": _fast_open_send,
}
_MACHINE = platform.machine()
_ARCH = AUDIT_ARCH.get(_MACHINE, 0)
_DECODERS = {number: _BY_NAME[name] for name, number in _NUMBERS.get(_MACHINE, {}).items()}
_COMPAT_ARCH, _COMPAT_NAMES = _COMPAT.get(_MACHINE, (0, {}))

ACCEPT_FLAGS = socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
