"""System call numbers of what Slim traps, for each architecture whose calls a program can make."""

from __future__ import annotations

import platform

# From linux/audit.h: e_machine, 64 bit, little endian.
X86_64 = 0xC000003E
I386 = 0x40000003
AARCH64 = 0xC00000B7
ARM = 0x40000028

CALL_NUMBERS = {
    # asm/unistd_64.h
    X86_64: {
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
    # asm/unistd_32.h; accept is socketcall's only.
    I386: {
        "ioctl": 54,
        "socketcall": 102,
        "epoll_create": 254,
        "epoll_create1": 329,
        "sendmmsg": 345,
        "bind": 361,
        "connect": 362,
        "listen": 363,
        "accept4": 364,
        "getsockopt": 365,
        "setsockopt": 366,
        "getsockname": 367,
        "getpeername": 368,
        "sendto": 369,
        "sendmsg": 370,
    },
    # asm-generic/unistd.h
    AARCH64: {
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
    # arm's asm/unistd-eabi.h
    ARM: {
        "ioctl": 54,
        "epoll_create": 250,
        "bind": 282,
        "connect": 283,
        "listen": 284,
        "accept": 285,
        "getsockname": 286,
        "getpeername": 287,
        "sendto": 290,
        "setsockopt": 294,
        "getsockopt": 295,
        "sendmsg": 296,
        "epoll_create1": 357,
        "accept4": 366,
        "sendmmsg": 374,
    },
}
"""Architecture -> name -> number."""

SOCKETCALLS = {
    2: ("bind", 3),
    3: ("connect", 3),
    4: ("listen", 2),
    5: ("accept", 3),
    6: ("getsockname", 3),
    7: ("getpeername", 3),
    11: ("sendto", 6),
    14: ("setsockopt", 5),
    15: ("getsockopt", 5),
    16: ("sendmsg", 3),
    18: ("accept4", 4),
    20: ("sendmmsg", 4),
}
"""What i386's socketcall is told to do -> name, how many arguments it reads: linux/net.h and
net/socket.c."""

COMPAT = {X86_64: I386, AARCH64: ARM}
"""Native architecture -> the one of 32 bits that its kernel serves too."""


def architectures() -> tuple[int, ...]:
    """This machine's: the native one first; none where Slim knows no numbers."""
    native = {"x86_64": X86_64, "aarch64": AARCH64}.get(platform.machine())
    return () if native is None else (native, COMPAT[native])
