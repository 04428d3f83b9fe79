"""What a host's process does with guarded sockets, called through guard_host.Host."""

from __future__ import annotations

import errno
import os
import socket
import struct
import subprocess
from typing import TYPE_CHECKING, Any

from support.guard_host import WORKLOAD

if TYPE_CHECKING:
    from slim.broker.endpoints import Endpoint
    from support.guard_host import Inside

SHAPED = 9
"""A workload whose sockets policy shapes."""
MSG_FASTOPEN = 0x20000000
FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}


def listen(inside: Inside, name: str, family: int, host: Endpoint, overlay: Endpoint) -> None:
    inside.sockets[name] = inside.guard.make_listener(
        WORKLOAD, FAMILIES[family], host, overlay, backlog=64
    )
    inside.sockets[name].settimeout(2)


def connect(
    inside: Inside,
    name: str,
    family: int,
    address: str,
    port: int,
    data: bytes = b"",
    timeout_s: float = 4,
) -> tuple[str, Any, Any]:
    """Errno's name (empty: connected), getsockname, getpeername; with data: by MSG_FASTOPEN."""
    sock = inside.guard.maker.wait(WORKLOAD, FAMILIES[family])
    inside.sockets[name] = sock
    sock.settimeout(timeout_s)
    try:
        if data:
            sock.sendto(data, MSG_FASTOPEN, (address, port))
        else:
            sock.connect((address, port))
    except TimeoutError:
        return "ETIMEDOUT", None, None
    except OSError as error:
        return errno.errorcode[error.errno or 0], None, None
    return "", sock.getsockname(), sock.getpeername()


def connect_plainly(
    inside: Inside, address: str, port: int, timeout_s: float = 1.2, source: int = 0
) -> str:
    """As any process of the host network: the errno's name; empty when it connected."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as sock:
        sock.settimeout(timeout_s)
        if source:
            sock.bind(("", source))
        try:
            sock.connect((address, port))
        except TimeoutError:
            return "ETIMEDOUT"
        except OSError as error:
            return errno.errorcode[error.errno or 0]
    return ""


def accept(inside: Inside, listener: str, name: str) -> tuple[Any, Any, Any]:
    """What accept, getpeername and getsockname say; None when nothing came."""
    try:
        inside.sockets[name], address = inside.sockets[listener].accept()
    except TimeoutError:
        return None, None, None
    sock = inside.sockets[name]
    sock.settimeout(2)
    return address, sock.getpeername(), sock.getsockname()


def accept_soon(inside: Inside, listener: str) -> bool:
    """Whether a connection waits in the queue."""
    inside.sockets[listener].settimeout(0.3)
    try:
        accepted, _ = inside.sockets[listener].accept()
    except TimeoutError:
        return False
    finally:
        inside.sockets[listener].settimeout(2)
    accepted.close()
    return True


def send(inside: Inside, name: str, data: bytes) -> None:
    inside.sockets[name].sendall(data)


def receive(inside: Inside, name: str) -> bytes:
    return inside.sockets[name].recv(100)


def close(inside: Inside, *names: str) -> None:
    for name in names:
        inside.sockets.pop(name).close()


def names(inside: Inside, name: str) -> tuple[Any, Any]:
    sock = inside.sockets[name]
    return sock.getsockname(), sock.getpeername()


def sysctl(inside: Inside, name: str, value: str) -> str:
    """Set it in this namespace; the value it had."""
    path = f"/proc/sys/{name.replace('.', '/')}"
    with open(path) as file:
        before = file.read().strip()
    with open(path, "w") as file:
        file.write(value)
    return before


def listening_port(inside: Inside, name: str) -> int:
    """A plain listener of the host's own."""
    sock = socket.create_server(("127.0.0.1", 0))
    inside.sockets[name] = sock
    port: int = sock.getsockname()[1]
    return port


def counters(inside: Inside) -> dict[str, int]:
    return {which.name: value for which, value in inside.guard.counters().items()}


def reset_on_close(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def reload(inside: Inside) -> None:
    from slim.broker.guard.guard import install
    from slim.broker.guard.requirements import OBJECT

    install(inside.guard.places, OBJECT)


def own_pid(_inside: Inside) -> int:
    return os.getpid()


def set_and_get(inside: Inside, level: int, option: int, value: int) -> int:
    with inside.guard.maker.wait(SHAPED, socket.AF_INET) as sock:
        sock.setsockopt(level, option, value)
        return sock.getsockopt(level, option)


def hidden(inside: Inside, level: int, option: int) -> tuple[bytes, bytes]:
    """The answer before and after the socket is sealed."""
    with inside.guard.maker.make_open(SHAPED, socket.AF_INET) as sock:
        sock.setsockopt(level, option, b"lo\0")
        before = sock.getsockopt(level, option, 16)
        inside.guard.seal(sock, SHAPED)
        return before, sock.getsockopt(level, option, 16)


def take_many(inside: Inside, count: int) -> int:
    taken = [inside.guard.maker.wait(SHAPED, socket.AF_INET6) for _ in range(count)]
    different = len({sock.fileno() for sock in taken})
    for sock in taken:
        sock.close()
    return different


def hold_elsewhere(inside: Inside) -> int:
    """A program in another cgroup that holds a guarded socket, fresh; its pid."""
    root = os.path.dirname(inside.guard.places.domain)  # noqa: PTH120
    with inside.guard.maker.wait(WORKLOAD, socket.AF_INET) as sock:
        process = subprocess.Popen(
            ["sh", "-c", f"echo $$ > {root}/cgroup.procs; echo; exec sleep 60"],
            pass_fds=[sock.fileno()],
            stdout=subprocess.PIPE,
        )
        assert process.stdout is not None
        process.stdout.read(1)
    return process.pid
