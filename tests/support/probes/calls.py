"""What probes of single system calls share: the C library, errno names."""

from __future__ import annotations

import ctypes
import errno
import socket

from support.probes.peers import family_of

libc = ctypes.CDLL(None, use_errno=True)


def name_of(code: int | None) -> str:
    return errno.errorcode.get(code or 0, "") if code else ""


def stream(address: str) -> socket.socket:
    return socket.socket(family_of(address), socket.SOCK_STREAM)
