"""The options of one TCP socket, read so that another socket can be made like it.

Reading the old socket at the moment of the swap replaces any log of setsockopt calls: it sees
what was inherited, set by ioctl or before the filter. Only what differs from a fresh socket of
the same family and namespace is copied, so that the host's own defaults (congestion control,
buffer sizes) apply where the program did not choose. Constants: asm-generic/socket.h,
linux/in.h, linux/in6.h, linux/tcp.h.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
from dataclasses import dataclass

SO_COOKIE = 57
SO_DOMAIN = 39
SO_INCOMING_CPU = 49
SO_MAX_PACING_RATE = 47
SO_NETNS_COOKIE = 71
SO_RCVBUFFORCE = 33
SO_SNDBUFFORCE = 32
SO_TIMESTAMPING = 37
SO_ZEROCOPY = 60
SO_BUSY_POLL = 46
SO_GET_FILTER = 26
IP_MINTTL = 21
IP_MTU_DISCOVER = 10
IP_RECVERR = 11
IP_TRANSPARENT = 19
IPV6_MTU_DISCOVER = 23
IPV6_RECVERR = 25
TCP_FASTOPEN_CONNECT = 30
TCP_FASTOPEN_NO_COOKIE = 34
TCP_INQ = 36
TCP_REPAIR = 19
TCP_THIN_LINEAR_TIMEOUTS = 16
TCP_ULP = 31
_TCP_INFO_BYTES = 208
"""Up to and with tcpi_bytes_sent."""
F_GETSIG = 11
F_SETSIG = 10
TCP_CLOSE = 7
TCP_ESTABLISHED = 1
TCP_LISTEN = 10
TCP_SYN_SENT = 2
TCP_SYN_RECV = 3

_SOL = socket.SOL_SOCKET
_IP = socket.IPPROTO_IP
_IPV6 = socket.IPPROTO_IPV6
_TCP = socket.IPPROTO_TCP

# (level, option, bytes); four bytes are an int.
_OPTIONS = (
    (_SOL, socket.SO_KEEPALIVE, 4),
    (_SOL, socket.SO_LINGER, 8),
    (_SOL, socket.SO_SNDBUF, 4),
    (_SOL, socket.SO_RCVBUF, 4),
    (_SOL, socket.SO_RCVLOWAT, 4),
    (_SOL, socket.SO_RCVTIMEO, 16),
    (_SOL, socket.SO_SNDTIMEO, 16),
    (_SOL, socket.SO_OOBINLINE, 4),
    (_SOL, socket.SO_PRIORITY, 4),
    (_SOL, socket.SO_REUSEADDR, 4),
    (_SOL, socket.SO_REUSEPORT, 4),
    (_SOL, SO_BUSY_POLL, 4),
    (_SOL, SO_TIMESTAMPING, 4),
    (_SOL, SO_MAX_PACING_RATE, 4),
    (_SOL, SO_ZEROCOPY, 4),
    (_IP, socket.IP_TOS, 4),
    (_IP, socket.IP_TTL, 4),
    (_IP, IP_MTU_DISCOVER, 4),
    (_IP, IP_RECVERR, 4),
    (_IP, IP_MINTTL, 4),
    (_TCP, socket.TCP_NODELAY, 4),
    (_TCP, socket.TCP_MAXSEG, 4),
    (_TCP, socket.TCP_CORK, 4),
    (_TCP, socket.TCP_KEEPIDLE, 4),
    (_TCP, socket.TCP_KEEPINTVL, 4),
    (_TCP, socket.TCP_KEEPCNT, 4),
    (_TCP, socket.TCP_SYNCNT, 4),
    (_TCP, socket.TCP_LINGER2, 4),
    (_TCP, socket.TCP_WINDOW_CLAMP, 4),
    (_TCP, socket.TCP_QUICKACK, 4),
    (_TCP, socket.TCP_CONGESTION, 16),
    (_TCP, TCP_THIN_LINEAR_TIMEOUTS, 4),
    (_TCP, socket.TCP_USER_TIMEOUT, 4),
    (_TCP, socket.TCP_NOTSENT_LOWAT, 4),
    (_TCP, TCP_INQ, 4),
)
_IPV6_OPTIONS = (
    (_IPV6, socket.IPV6_V6ONLY, 4),
    (_IPV6, socket.IPV6_TCLASS, 4),
    (_IPV6, socket.IPV6_UNICAST_HOPS, 4),
    (_IPV6, IPV6_MTU_DISCOVER, 4),
    (_IPV6, IPV6_RECVERR, 4),
)
# What another socket cannot be given, or must not be: such a socket stays on the overlay. A fresh
# socket has zero or nothing there.
_NOT_COPIED = (
    (_SOL, socket.SO_BINDTODEVICE, 16, "SO_BINDTODEVICE"),
    (_SOL, socket.SO_MARK, 4, "SO_MARK"),
    (_SOL, SO_GET_FILTER, 0, "SO_ATTACH_FILTER"),
    (_IP, IP_TRANSPARENT, 4, "IP_TRANSPARENT"),
    (_IP, socket.IP_OPTIONS, 40, "IP_OPTIONS"),
    (_TCP, TCP_REPAIR, 4, "TCP_REPAIR"),
    (_TCP, TCP_FASTOPEN_CONNECT, 4, "TCP_FASTOPEN_CONNECT"),
    (_TCP, TCP_ULP, 16, "TCP_ULP"),
)
_NOT_COPIED_NUMBERS = tuple(
    zip(*((level, name) for level, name, size, _ in _NOT_COPIED if size == 4), strict=True)
)
_NOT_COPIED_BYTES = tuple(
    zip(
        *((level, name, size or 1024) for level, name, size, _ in _NOT_COPIED if size != 4),
        strict=True,
    )
)
# The plain numbers. Through socket.socket each is made a member of an enum, which takes longer
# than the system calls beside it.
_FAMILY, _TYPE, _PROTOCOL = (
    vars(socket.SocketType)[name].__get__ for name in ("family", "type", "proto")
)
_INET = (int(socket.AF_INET), int(socket.AF_INET6))
_BUFFER_FORCE = {socket.SO_SNDBUF: SO_SNDBUFFORCE, socket.SO_RCVBUF: SO_RCVBUFFORCE}
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
_TIMEVAL = struct.Struct("ll")

OptionValues = dict[tuple[int, int], int | bytes]


@dataclass(slots=True)
class SocketFacts:
    """What the broker asks of a socket before it decides anything. Not frozen: made per call."""

    cookie: int
    domain: int
    is_tcp: bool
    netns: int
    """SO_NETNS_COOKIE: the network namespace the socket lives in."""
    state: int
    """TCP state as in linux/tcp.h; 0 when not TCP."""
    nonblocking: bool


def is_inet(sock: socket.socket) -> bool:
    """Whether it is of IPv4 or IPv6: other families may not know the options of socket(7)."""
    return _FAMILY(sock) in _INET


def read_facts(sock: socket.socket) -> SocketFacts:
    """SO_COOKIE and the other options of socket(7) that tell what this is, Linux 5.14.

    Of a socket of another family only that is told: nothing more is ever asked of it.
    """
    get = sock.getsockopt
    domain: int = _FAMILY(sock)
    if domain not in _INET:
        return SocketFacts(0, domain, False, 0, 0, False)
    cookie = int.from_bytes(get(_SOL, SO_COOKIE, 8), "little")
    is_tcp = _PROTOCOL(sock) == socket.IPPROTO_TCP and _TYPE(sock) == socket.SOCK_STREAM
    netns = int.from_bytes(get(_SOL, SO_NETNS_COOKIE, 8), "little")
    state = tcp_state(sock) if is_tcp else 0
    return SocketFacts(cookie, domain, is_tcp, netns, state, is_nonblocking(sock))


def is_nonblocking(sock: socket.socket) -> bool:
    """O_NONBLOCK of the open file (fcntl(2)), whatever the socket object believes."""
    return bool(fcntl.fcntl(sock.fileno(), fcntl.F_GETFL) & os.O_NONBLOCK)


def read_cookie(sock: socket.socket) -> int:
    """SO_COOKIE of socket(7), Linux 4.6."""
    return int.from_bytes(sock.getsockopt(_SOL, SO_COOKIE, 8), "little")


def read_netns_cookie(sock: socket.socket) -> int:
    """SO_NETNS_COOKIE, Linux 5.14."""
    return int.from_bytes(sock.getsockopt(_SOL, SO_NETNS_COOKIE, 8), "little")


def tcp_state(sock: socket.socket) -> int:
    """tcpi_state, the first byte of TCP_INFO (tcp(7))."""
    return sock.getsockopt(_TCP, socket.TCP_INFO, 1)[0]


class FreshOptions:
    """The options that are copied, as a socket has them that nobody has touched.

    Of one family and namespace. Options that this kernel lacks cannot have been set, and are
    left out.
    """

    def __init__(self, fresh: socket.socket, domain: int) -> None:
        """Read them; borrows `fresh`."""
        numbers: list[tuple[int, int]] = []
        texts: list[tuple[int, int, int]] = []
        for level, name, size in _OPTIONS if domain == socket.AF_INET else _OPTIONS + _IPV6_OPTIONS:
            try:
                fresh.getsockopt(level, name, size)
            except OSError as error:
                if error.errno not in (errno.ENOPROTOOPT, errno.EOPNOTSUPP, errno.EINVAL):
                    raise
                continue
            if size == 4:
                numbers.append((level, name))
            else:
                texts.append((level, name, size))
        self._keys = [*numbers, *((level, name) for level, name, _ in texts)]
        # Columns, for map(): forty calls without a line of Python between them.
        self._numbers = tuple(zip(*numbers, strict=True))
        self._texts = tuple(zip(*texts, strict=True))
        self._values = self._read(fresh)

    def changed(self, sock: socket.socket) -> OptionValues:
        """What a socket of the same family and namespace has otherwise; borrows it."""
        values = self._read(sock)
        if values == self._values:
            return {}
        pairs = zip(self._keys, values, self._values, strict=True)
        return {key: value for key, value, fresh in pairs if value != fresh}

    def _read(self, sock: socket.socket) -> list[int | bytes]:
        get = sock.getsockopt
        return [*map(get, *self._numbers), *map(get, *self._texts)]


def find_uncopyable(sock: socket.socket) -> str:
    """The name of an option in force that cannot be copied; empty when there is none."""
    get = sock.getsockopt
    try:
        if not any(map(get, *_NOT_COPIED_NUMBERS)) and not any(map(get, *_NOT_COPIED_BYTES)):
            return ""
    except OSError:
        # This kernel lacks one of them: look at each.
        pass
    for level, name, size, text in _NOT_COPIED:
        try:
            value = sock.getsockopt(level, name) if size == 4 else None
            if size == 0:
                # With length 0 the kernel answers how many instructions there are.
                value = len(sock.getsockopt(level, name, 1024))
            elif value is None:
                value = len(sock.getsockopt(level, name, size).strip(b"\0"))
        except OSError as error:
            if error.errno in (errno.ENOPROTOOPT, errno.EOPNOTSUPP, errno.ENOTCONN):
                continue
            return text
        if value:
            return text
    return ""


def apply_options(sock: socket.socket, values: OptionValues, *, listener: bool) -> str:
    """Set options on a socket; gives the name of one that was refused, or nothing.

    For a host listener, IPV6_V6ONLY is left off (its IPv4 host address is a mapped one), and so
    are the reuse options, which the caller chooses.
    """
    for (level, name), value in values.items():
        if listener and (
            (level == _IPV6 and name == socket.IPV6_V6ONLY)
            or (level == _SOL and name in (socket.SO_REUSEADDR, socket.SO_REUSEPORT))
        ):
            continue
        try:
            if level == _SOL and name in _BUFFER_FORCE and isinstance(value, int):
                # The kernel doubles what it is told (socket(7)), and reads out the double.
                sock.setsockopt(level, _BUFFER_FORCE[name], value // 2)
            else:
                sock.setsockopt(level, name, value)
        except OSError as error:
            return f"option {level}/{name} refused with {errno.errorcode.get(error.errno or 0)}"
    return ""


def copy_file_state(source_fd: int, target_fd: int) -> None:
    """Copy what belongs to the open file: O_NONBLOCK and O_ASYNC, its owner and signal."""
    flags = fcntl.fcntl(source_fd, fcntl.F_GETFL)
    owner = fcntl.fcntl(source_fd, fcntl.F_GETOWN)
    if owner:
        # Without O_ASYNC too: the owner gets SIGURG (socket(7)).
        fcntl.fcntl(target_fd, fcntl.F_SETOWN, owner)
        fcntl.fcntl(target_fd, F_SETSIG, fcntl.fcntl(source_fd, F_GETSIG))
    fcntl.fcntl(target_fd, fcntl.F_SETFL, flags & (os.O_NONBLOCK | os.O_ASYNC))


def timeout_s(sock: socket.socket, option: int) -> float | None:
    """SO_RCVTIMEO or SO_SNDTIMEO in seconds; None when not set."""
    seconds, microseconds = _TIMEVAL.unpack(sock.getsockopt(_SOL, option, _TIMEVAL.size))
    return seconds + microseconds / 1e6 if seconds or microseconds else None


def has_written(sock: socket.socket) -> bool:
    """Whether any byte was ever written to a TCP socket, be it in its SYN or not sent yet.

    tcpi_notsent_bytes and tcpi_bytes_sent of struct tcp_info (linux/tcp.h), Linux 4.19.
    """
    raw = sock.getsockopt(_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
    (not_sent,) = struct.unpack_from("=I", raw, 144)
    (sent,) = struct.unpack_from("=Q", raw, 200)
    return bool(not_sent or sent)


def reset(sock: socket.socket) -> None:
    """Close with RST, whatever was received or queued (SO_LINGER with zero time, socket(7))."""
    try:
        sock.setsockopt(_SOL, socket.SO_LINGER, _RESET_ON_CLOSE)
    finally:
        sock.close()
