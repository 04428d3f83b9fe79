"""Host sockets, as the guard that is in force makes them, opens them for slimd and closes them off.

Portable: plain sockets; what confines them is the seccomp filter. Guarded (guard/): born in the
workload's cgroup and slimd's alone until they are *sealed*; from then on the kernel confines them
and shows overlay addresses, whoever holds them. Whoever puts a socket into a container seals it
first.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Protocol

from slim.broker.errors import SlimError
from slim.broker.guard.guard import Guard
from slim.broker.guard.layouts import SocketFlag
from slim.broker.guard.places import instance_of
from slim.broker.kernel import sockaddr
from slim.broker.perform import host_socket

if TYPE_CHECKING:
    import socket

    from slim.broker.endpoints import Endpoint
    from slim.broker.local.states import TrapSettings

MAX_NUMBER = (1 << 32) - 1


class HostSockets(Protocol):
    """What traps does with host sockets besides what any socket can. All borrow the socket."""

    def add_workload(self, workload: int) -> None:
        """Its sockets can be made from now on; SlimError why not."""
        ...

    def drop_workload(self, workload: int) -> None: ...

    def make(self, workload: int, domain: int) -> socket.socket:
        """A TCP socket in the host's namespace that is slimd's alone; the caller owns it."""
        ...

    def seal_connected(
        self, sock: socket.socket, workload: int, bound: Endpoint, peer: Endpoint
    ) -> None:
        """Its overlay names from now on; port 0 of `bound`: that of the host socket itself."""
        ...

    def seal_listener(self, sock: socket.socket, workload: int, local: Endpoint) -> None:
        """Listening already; what it accepts is slimd's to examine."""
        ...

    def open_accepted(self, sock: socket.socket, workload: int, peer: Endpoint) -> Endpoint:
        """Of a socket that slimd accepted itself: its peer on the host network.

        `peer` is what accept(2) said.
        """
        ...

    def bound_port(self, sock: socket.socket, local: Endpoint) -> int:
        """The overlay source port, if it is not the host socket's own port, else 0."""
        ...


class PortableSockets:
    """Without help of the kernel's."""

    def add_workload(self, workload: int) -> None:
        pass

    def drop_workload(self, workload: int) -> None:
        pass

    def make(self, workload: int, domain: int) -> socket.socket:
        return host_socket(domain)

    def seal_connected(
        self, sock: socket.socket, workload: int, bound: Endpoint, peer: Endpoint
    ) -> None:
        pass

    def seal_listener(self, sock: socket.socket, workload: int, local: Endpoint) -> None:
        pass

    def open_accepted(self, sock: socket.socket, workload: int, peer: Endpoint) -> Endpoint:
        return peer

    def bound_port(self, sock: socket.socket, local: Endpoint) -> int:
        port: int = sock.getsockname()[1]
        return local.port if local.port != port else 0


class GuardedSockets:
    """Confined by the programs of kmod/guard.bpf.c. Takes the guard."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard

    def add_workload(self, workload: int) -> None:
        # The namespace's cookie: never reused while the machine runs, so that a socket which
        # outlives its workload never comes under another's rules.
        if workload > MAX_NUMBER:
            raise SlimError(
                f"network namespace {workload} has a number beyond those of the kernel guard",
                hint="billions of namespaces were made here: start the machine anew",
            )
        self._guard.add_workload(workload)

    def drop_workload(self, workload: int) -> None:
        self._guard.drop_workload(workload)

    def make(self, workload: int, domain: int) -> socket.socket:
        # The stock is empty for the first of a family and in a burst. The thread then makes one
        # while we wait: two short writes to the kernel, and nobody else's turn of anything.
        try:
            sock = self._guard.maker.take(workload, domain)
            if sock is None:
                return self._guard.maker.make_open(workload, domain)
        except SlimError as error:
            raise OSError(errno.ENOBUFS, error.message) from None
        try:
            self._guard.seal(sock, workload, SocketFlag.OPEN)
        except OSError:
            sock.close()
            raise
        return sock

    def seal_connected(
        self, sock: socket.socket, workload: int, bound: Endpoint, peer: Endpoint
    ) -> None:
        self._guard.seal(sock, workload, local=bound, remote=peer)

    def seal_listener(self, sock: socket.socket, workload: int, local: Endpoint) -> None:
        port: int = sock.getsockname()[1]
        self._guard.seal(
            sock,
            workload,
            SocketFlag.LISTENER | SocketFlag.PREAMBLE,
            local=local,
            host_port=port,
        )

    def open_accepted(self, sock: socket.socket, workload: int, peer: Endpoint) -> Endpoint:
        self._guard.seal(sock, workload, SocketFlag.OPEN)
        return sockaddr.from_python(sock.getpeername())

    def bound_port(self, sock: socket.socket, local: Endpoint) -> int:
        return self._guard.local_port(sock)


def make_host_sockets(settings: TrapSettings, host_netns: int) -> HostSockets:
    """By the guard of the settings; KernelFeatureMissing when that cannot run here."""
    if settings.guard == "kernel":
        return GuardedSockets(Guard(instance_of(settings.host, host_netns)))
    return PortableSockets()
