"""ioctl(2) of interfaces (netdevice(7)) on a connected socket."""

from __future__ import annotations

import errno
import fcntl
import socket
import struct
from typing import Any

from support.probes.peers import greeted

SIOCGIFFLAGS = 0x8913
SIOCATMARK = 0x8905


def ask(address: str, port: int) -> dict[str, Any]:
    """Errno (or "") of a request about an interface and of one about the socket itself."""
    with socket.create_connection((address, port), timeout=10) as sock:
        greeted(sock)
        return {
            "interface": _try(sock, SIOCGIFFLAGS, struct.pack("16s24x", b"lo")),
            "socket": _try(sock, SIOCATMARK, bytes(4)),
        }


def _try(sock: socket.socket, request: int, argument: bytes) -> str:
    try:
        fcntl.ioctl(sock, request, argument)
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return ""
