"""Decoded socket calls: what was asked. The counterpart is actions.py: what will be done.

Everything the target owns is read here, once, bounded by the kernel's own limits, and copied;
later stages see owned values only. Whoever uses what was read checks first that the notification
is still valid (seccomp_notify.is_valid): until then the bytes may be another process's.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from slim.broker.kernel import sockaddr
from slim.broker.kernel.call_numbers import CALL_NUMBERS, SOCKETCALLS, architectures
from slim.broker.kernel.pacing import LIMIT_OPTIONS
from slim.broker.kernel.process_memory import process_vm_readv
from slim.broker.kernel.trapped_calls import (
    MSG_FASTOPEN,
    TRAPPED_OPTIONS,
    TRAPPED_READS,
    TRAPPED_WITH_FASTOPEN,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from slim.broker.endpoints import Endpoint
    from slim.broker.kernel.seccomp_notify import Notification

MAX_LIMIT_BYTES = 8
"""SO_MAX_PACING_RATE takes 8 or 4 bytes, the others 4 (socket(7), ip(7))."""


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
Decoder: TypeAlias = "Callable[[int, Args], SocketCall | None]"


def decode(notification: Notification) -> SocketCall | None:
    """The call behind a notification; None for one of another architecture, or not of the trap set.

    The compat architecture's calls have the native arguments: pointers are narrower there; int,
    sockaddr and socklen_t are the same.

    Raises OSError EFAULT (the program's own bad pointer) or ESRCH when memory cannot be read.
    """
    decoder = _DECODERS.get((notification.arch, notification.nr))
    return decoder(notification.tid, notification.args) if decoder else None


def fd_of(notification: Notification) -> int | None:
    """The fd that a trapped call is made on; None for socketcall, which has it in memory."""
    if _DECODERS.get((notification.arch, notification.nr)) is _socketcall:
        return None
    return _int(notification.args[0])


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


def _fast_open_send(flags: int) -> Decoder:
    """Of a call whose argument of that number is its flags."""

    def decode_send(tid: int, args: Args) -> SocketCall | None:
        # A filter cannot see the flags of a socketcall.
        return FastOpenSend(_int(args[0])) if args[flags] & MSG_FASTOPEN else None

    return decode_send


def _setsockopt(tid: int, args: Args) -> SocketCall | None:
    fd, level, option = _int(args[0]), _int(args[1]), _int(args[2])
    if (level, option) in TRAPPED_OPTIONS:
        return SetOption(fd)
    if (level, option) not in LIMIT_OPTIONS:
        # By socketcall, or a number that no option has, which an OCI profile traps.
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


def _socketcall(tid: int, args: Args) -> SocketCall | None:
    """What C libraries of i386 called before Linux 4.3: the arguments are in memory."""
    name, count = SOCKETCALLS.get(_int(args[0]), ("", 0))
    decoder = _BY_NAME.get(name)
    if decoder is None:
        return None
    raw = process_vm_readv(tid, args[1], 4 * count)
    return decoder(tid, struct.unpack("=6I", raw.ljust(24, b"\0")))


_BY_NAME: dict[str, Decoder] = {
    "connect": _connect,
    "accept": _accept,
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
    "socketcall": _socketcall,
    **{name: _fast_open_send(flags) for name, flags in TRAPPED_WITH_FASTOPEN.items()},
}
_DECODERS = {
    (arch, number): _BY_NAME[name]
    for arch in architectures()
    for name, number in CALL_NUMBERS[arch].items()
}

ACCEPT_FLAGS = socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
