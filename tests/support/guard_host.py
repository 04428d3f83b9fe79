"""A host with a kernel guard, as a process in a network namespace of its own: tests call into it.

`Host.call(function, ...)` runs a function of an importable module there, with the `Inside` first.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import traceback
import uuid
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

from slim.broker.endpoints import Endpoint
from slim.broker.guard.cleanup import clean_up
from slim.broker.guard.guard import Guard
from slim.broker.kernel import namespaces

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator
    from multiprocessing.connection import Connection

WORKLOAD = 7
PEER = 3
FLOW = 0x51F0
KEY = bytes(range(16))


def endpoint(address: str, port: int) -> Endpoint:
    return Endpoint(ip_address(address), port)


@dataclass
class Inside:
    """What a host's process has."""

    guard: Guard
    instance: str
    sockets: dict[str, socket.socket] = field(default_factory=dict)


class Failed(Exception):
    pass


class Host:
    def __init__(self, namespace: str, addresses: dict[int, str]) -> None:
        self.addresses = addresses
        self.namespace = namespace
        self.instance = f"test-{uuid.uuid4().hex[:8]}"
        context = multiprocessing.get_context("spawn")
        self._here, there = context.Pipe()
        self._process = context.Process(target=_serve, args=(there, namespace, self.instance))
        self._process.start()
        there.close()
        self._answer()

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        self._here.send((function, arguments))
        return self._answer()

    def guard(self, method: str, *arguments: Any, **named: Any) -> Any:
        return self.call(_guard_call, method, arguments, named)

    def close(self) -> None:
        self.stop()
        clean_up(self.instance, cut=True)

    def stop(self) -> None:
        """End the process; what it pinned stays."""
        if self._here.closed:
            return
        self._here.send(None)
        self._process.join(10)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._here.close()

    def _answer(self) -> Any:
        if not self._here.poll(30):
            raise TimeoutError(f"{self.namespace} does not answer")
        good, value = self._here.recv()
        if not good:
            raise Failed(value)
        return value


def _guard_call(inside: Inside, method: str, arguments: Any, named: Any) -> Any:
    return getattr(inside.guard, method)(*arguments, **named)


def _serve(pipe: Connection, namespace: str, instance: str) -> None:
    fd = namespaces.open_namespace(f"/run/netns/{namespace}")
    namespaces.setns(fd, namespaces.CLONE_NEWNET)
    os.close(fd)
    try:
        with Guard(instance) as guard:
            guard.add_workload(WORKLOAD)
            inside = Inside(guard, instance)
            pipe.send((True, None))
            while (asked := pipe.recv()) is not None:
                function, arguments = asked
                try:
                    answer = (True, function(inside, *arguments))
                except Exception:  # noqa: BLE001  the test sees the traceback
                    answer = (False, traceback.format_exc())
                pipe.send(answer)
            for sock in inside.sockets.values():
                sock.close()
    except Exception:  # noqa: BLE001  as above
        pipe.send((False, traceback.format_exc()))
    finally:
        # The cgroup of the domain can then be removed.
        with open(
            "/sys/fs/cgroup/unified/cgroup.procs"
            if os.path.isdir(  # noqa: PTH112
                "/sys/fs/cgroup/unified"
            )
            else "/sys/fs/cgroup/cgroup.procs",
            "w",
        ) as file:
            file.write("0")


def _run(command: str) -> None:
    subprocess.run(command.split(), check=True, capture_output=True)


@contextmanager
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """Client and server, joined by veth, IPv4 and IPv6."""
    tag = uuid.uuid4().hex[:6]
    names = [f"gA{tag}", f"gB{tag}"]
    made: list[Host] = []
    try:
        for name in names:
            _run(f"ip netns add {name}")
            _run(f"ip -n {name} link set lo up")
        _run(f"ip link add u netns {names[0]} type veth peer name u netns {names[1]}")
        for number, name in enumerate(names, 1):
            _run(f"ip -n {name} addr add 192.0.2.{number}/24 dev u")
            _run(f"ip -n {name} addr add fd00:2::{number}/64 dev u nodad")
            _run(f"ip -n {name} link set u up")
            addresses = {4: f"192.0.2.{number}", 6: f"fd00:2::{number}"}
            made.append(Host(name, addresses))
        yield made[0], made[1]
    finally:
        for host in made:
            host.close()
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)
