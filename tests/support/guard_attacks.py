"""What a container could do with a socket of the host: each attack is a function of the socket.

It returns what it gained; an OSError is a refusal.
"""

from __future__ import annotations

import array
import errno
import os
import socket
import struct
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from support.guard_host import WORKLOAD

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.guard_host import Inside

AF_UNSPEC = bytes(16)
IP_PKTINFO, IP_OPTIONS, IP_TRANSPARENT, IP_RECVERR, IP_UNICAST_IF = 8, 4, 19, 11, 50
IP_FREEBIND, IP_RECVORIGDSTADDR, IP_LOCAL_PORT_RANGE = 15, 20, 51
IPV6_ADDRFORM, IPV6_RECVPKTINFO, IPV6_TRANSPARENT = 1, 49, 75
SO_MARK, SO_BINDTODEVICE, SO_ATTACH_FILTER, SO_BINDTOIFINDEX = 36, 25, 26, 62
TCP_REPAIR, TCP_SAVE_SYN = 19, 27
MSG_FASTOPEN = 0x20000000


def disconnect(sock: socket.socket) -> None:
    """connect(2) with AF_UNSPEC, which no hook can refuse."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.connect(sock.fileno(), AF_UNSPEC, len(AF_UNSPEC)) < 0:
        raise OSError(ctypes.get_errno(), "connect AF_UNSPEC")


def reconnect(sock: socket.socket, port: int) -> str:
    disconnect(sock)
    sock.connect(("127.0.0.1", port))
    return "connected to the host's loopback"


def fast_open(sock: socket.socket, port: int) -> str:
    sock.sendto(b"x", MSG_FASTOPEN, ("127.0.0.1", port))
    return "connected with MSG_FASTOPEN"


def fast_open_disconnected(sock: socket.socket, port: int) -> str:
    disconnect(sock)
    return fast_open(sock, port)


def bind_any(sock: socket.socket, _port: int) -> str:
    sock.bind(("0.0.0.0", 0))
    return "bound"


def option(level: int, name: int, value: bytes) -> Callable[[socket.socket, int], str]:
    def attack(sock: socket.socket, _port: int) -> str:
        sock.setsockopt(level, name, value)
        return f"set {level}/{name}"

    return attack


_ONE = struct.pack("i", 1)
# One instruction: let everything through. A filter sees the headers of the host.
_FILTER_CODE = array.array("B", struct.pack("=HBBI", 6, 0, 0, 0xFFFF))
_FILTER = struct.pack("HxxxxxxP", 1, _FILTER_CODE.buffer_info()[0])

ATTACKS: dict[str, Callable[[socket.socket, int], str]] = {
    "reconnect to loopback": reconnect,
    "MSG_FASTOPEN": fast_open,
    "MSG_FASTOPEN after AF_UNSPEC": fast_open_disconnected,
    "bind": bind_any,
    "SO_MARK": option(1, SO_MARK, _ONE),
    "SO_BINDTODEVICE": option(1, SO_BINDTODEVICE, b"lo\0"),
    "SO_BINDTOIFINDEX": option(1, SO_BINDTOIFINDEX, _ONE),
    "SO_ATTACH_FILTER": option(1, SO_ATTACH_FILTER, _FILTER),
    "IP_TRANSPARENT": option(0, IP_TRANSPARENT, _ONE),
    "IP_FREEBIND": option(0, IP_FREEBIND, _ONE),
    "IP_OPTIONS": option(0, IP_OPTIONS, b"\x07\x07\x04\0\0\0\0\0"),
    "IP_PKTINFO": option(0, IP_PKTINFO, _ONE),
    "IP_RECVERR": option(0, IP_RECVERR, _ONE),
    "IP_RECVORIGDSTADDR": option(0, IP_RECVORIGDSTADDR, _ONE),
    "IP_LOCAL_PORT_RANGE": option(0, IP_LOCAL_PORT_RANGE, struct.pack("I", 50 | 60 << 16)),
    "TCP_REPAIR": option(6, TCP_REPAIR, _ONE),
    "TCP_SAVE_SYN": option(6, TCP_SAVE_SYN, _ONE),
}
ATTACKS_IPV6: dict[str, Callable[[socket.socket, int], str]] = {
    "IPV6_RECVPKTINFO": option(41, IPV6_RECVPKTINFO, _ONE),
    "IPV6_TRANSPARENT": option(41, IPV6_TRANSPARENT, _ONE),
    "IP_PKTINFO on an IPv6 socket": option(0, IP_PKTINFO, _ONE),
}


def run(inside: Inside, name: str, port: int, guarded: bool) -> str:
    """What the attack gained, or the name of the errno that refused it."""
    family = socket.AF_INET6 if name in ATTACKS_IPV6 else socket.AF_INET
    attack = (ATTACKS | ATTACKS_IPV6)[name]
    with target(inside, family, guarded=guarded) as sock:
        return outcome(attack, sock, port)


def target(inside: Inside, family: int, *, guarded: bool) -> socket.socket:
    sock = inside.guard.maker.wait(WORKLOAD, family) if guarded else socket.socket(family)
    # Blocking: a refusal and success are both immediate on loopback, and EINPROGRESS is neither.
    sock.setblocking(True)
    return sock


def outcome(attack: Callable[[socket.socket, int], str], sock: socket.socket, port: int) -> str:
    try:
        return attack(sock, port)
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error.errno))


_STRANGER = """
import socket, sys
channel = socket.socket(fileno=int(sys.argv[1]))
_, fds, _, _ = socket.recv_fds(channel, 1, 1)
sock = socket.socket(fileno=fds[0])
try:
    sock.connect(("127.0.0.1", int(sys.argv[2])))
    print("connected")
except OSError as error:
    print(error.errno)
"""


def pass_on(inside: Inside, port: int, guarded: bool) -> str:
    """Another process, in another cgroup, gets the fd by SCM_RIGHTS and connects."""
    here, there = socket.socketpair()
    with here, there, target(inside, socket.AF_INET, guarded=guarded) as sock:
        move = f'echo $$ > {_root()}/cgroup.procs; exec {sys.executable} -c "$0" "$@"'
        process = subprocess.Popen(
            ["sh", "-c", move, _STRANGER, str(there.fileno()), str(port)],
            pass_fds=[there.fileno()],
            stdout=subprocess.PIPE,
            text=True,
        )
        socket.send_fds(here, [b"x"], [sock.fileno()])
        said = process.communicate(timeout=20)[0].strip()
    return errno.errorcode[int(said)] if said.isdecimal() else said


def run_program(inside: Inside, program: str, port: int, guarded: bool) -> str:
    """A program that gets the fd's number and the port, and prints an errno or `connected`."""
    with target(inside, socket.AF_INET, guarded=guarded) as sock:
        said = subprocess.run(
            [program, str(sock.fileno()), str(port)],
            pass_fds=[sock.fileno()],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        ).stdout.strip()
    return errno.errorcode[int(said)] if said.isdecimal() else said


def stray_listener(inside: Inside, guarded: bool) -> int:
    """listen(2) on an unbound socket, which no cgroup hook refuses; the port, for others to try."""
    sock = target(inside, socket.AF_INET, guarded=guarded)
    sock.listen(5)
    inside.sockets[f"stray-{guarded}"] = sock
    if not guarded:
        port: int = sock.getsockname()[1]
        return port
    with open("/proc/self/net/tcp") as table:
        inode = str(os.fstat(sock.fileno()).st_ino)
        for line in table:
            fields = line.split()
            if fields[9:10] == [inode]:
                return int(fields[1].split(":")[1], 16)
    raise AssertionError("the stray listener is not in /proc/net/tcp")


def ask_option(inside: Inside, name: str, level: int, option_name: int) -> tuple[Any, bytes]:
    """getsockopt of a socket into memory of ours: errno's name, and what the memory holds then."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(256)
    length = ctypes.c_uint32(256)
    sock = inside.sockets[name]
    code = libc.getsockopt(sock.fileno(), level, option_name, buffer, ctypes.byref(length))
    return ("" if code == 0 else errno.errorcode[ctypes.get_errno()]), buffer.raw


def _root() -> str:
    unified = "/sys/fs/cgroup/unified"
    return unified if os.path.isdir(unified) else "/sys/fs/cgroup"  # noqa: PTH112
