"""The listening socket of the OCI agent, which outlives slimd: runtimes that come while none runs
wait in its queue.

systemd's, if it gives one (slimd-oci.socket, sd_listen_fds(3)); else one that the keeper holds.
"""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

from slim.broker.errors import ControlError
from slim.broker.kernel.features import is_unix_listener
from slim.broker.local import seqpacket

if TYPE_CHECKING:
    from pathlib import Path

    from slim.broker.control_links import KeeperClient

KEPT = "agent/oci"
ACTIVATED = "oci"
"""FileDescriptorName of the socket unit."""
BACKLOG = 1024
_FIRST_FD = 3
"""SD_LISTEN_FDS_START of sd_listen_fds(3)."""


async def open_listener(path: Path, keeper: KeeperClient) -> socket.socket:
    """The socket at `path`; the caller owns it."""
    given = take_activated()
    if given is not None:
        return given
    held, _ = await keeper.fetch(KEPT)
    kept = [fd for _, _, fds in held for fd in fds]
    for fd in kept[1:]:
        os.close(fd)
    if kept:
        sock = socket.socket(fileno=kept[0])
        if _is_reached_at(sock, path):
            return sock
        sock.close()
    sock = listen(str(path))
    await keeper.store(KEPT, b"", (sock.fileno(),))
    return sock


def _is_reached_at(sock: socket.socket, path: Path) -> bool:
    return sock.getsockname() == str(path) and is_unix_listener(path) and path.is_socket()


def listen(path: str) -> socket.socket:
    """A listening socket at `path`, root's alone, which replaces whatever was there."""
    return seqpacket.listen(path, mode=0o600, kind=socket.SOCK_STREAM, backlog=BACKLOG)


def take_activated() -> socket.socket | None:
    """The socket that systemd passed, if it did; whoever comes second gets none.

    ControlError if it is not what the agent needs.
    """
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return None
    names = os.environ.pop("LISTEN_FDNAMES", "").split(":")
    count = os.environ.pop("LISTEN_FDS", "0")
    del os.environ["LISTEN_PID"]
    if not count.isascii() or not count.isdigit():
        raise ControlError(f"LISTEN_FDS is {count!r}, which is no number")
    found = None
    for fd, name in zip(range(_FIRST_FD, _FIRST_FD + int(count)), names, strict=False):
        os.set_inheritable(fd, False)
        if name == ACTIVATED and found is None:
            found = fd
    return None if found is None else _checked(found)


def _checked(fd: int) -> socket.socket:
    try:
        sock = socket.socket(fileno=fd)
        is_listening = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError as error:
        raise ControlError(f"systemd passed no socket as fd {fd}: {error.strerror}") from None
    if (sock.family, sock.type) != (socket.AF_UNIX, socket.SOCK_STREAM) or not is_listening:
        sock.close()
        raise ControlError(
            f"the socket {ACTIVATED!r} that systemd passed is no listening unix stream socket",
            hint="slimd-oci.socket needs ListenStream= with a path",
        )
    return sock
