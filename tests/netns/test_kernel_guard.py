"""The kernel guard, end to end: with itself, and with a host that has the portable one."""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
from typing import TYPE_CHECKING

import pytest

from slim.broker.kernel.pidfd import ThreadPidfds
from slim.broker.workloads import SYNTHETIC_UID_BASE
from support.pairs import ANYWHERE, GREETING_PORT
from support.probes import connected, connecting, interfaces, listening, peers
from support.two_hosts import Settings, TwoHosts

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.two_hosts import Workload

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_netns, pytest.mark.needs_guard]

GUARDS = (("kernel", "kernel"), ("kernel", "portable"), ("portable", "kernel"))


@pytest.fixture(scope="module", params=GUARDS, ids=" to ".join)
def hosts(request: pytest.FixtureRequest) -> Iterator[TwoHosts]:
    near, far = request.param
    with TwoHosts(Settings(guard=near), Settings(guard=far)) as two_hosts:
        yield two_hosts


@pytest.fixture(scope="module")
def greeting(server: Workload) -> Workload:
    for version, anywhere in ANYWHERE.items():
        server.probe(peers.greet_server, anywhere, GREETING_PORT + version).result()
    return server


@pytest.fixture(params=[4, 6])
def version(request: pytest.FixtureRequest) -> int:
    return int(request.param)


def test_both_ends_see_overlay_addresses(
    hosts: TwoHosts, client: Workload, greeting: Workload, version: int
) -> None:
    connection = client.probe(peers.stay, greeting.address(version), GREETING_PORT + version)
    seen = connection.result()
    out = hosts.row("a", seen["client_name"])
    assert (out.path, out.reason) == ("fast", "")
    assert hosts.row("b", seen["client_peer"]).overlay_peer == seen["client_name"]
    assert client.address(version) in seen["client_name"]
    assert greeting.address(version) in seen["client_peer"]
    names = client.call(connected.names, greeting.address(version), GREETING_PORT + version)
    assert names
    connection.stop()


def test_a_port_that_the_program_bound_is_shown(
    client: Workload, greeting: Workload, version: int
) -> None:
    own = client.address(version)
    seen = client.call(
        connecting.connect_bound, greeting.address(version), GREETING_PORT + version, own, 4321
    )
    assert seen["client_name"].endswith(":4321")
    assert seen["peer"] == seen["client_name"]


def test_a_listener_shows_its_overlay_address(server: Workload) -> None:
    seen = server.call(listening.listener_names, server.address4, 8123)
    assert seen["name"] == f"{server.address4}:8123"


def test_who_holds_a_host_socket_reaches_nothing_with_it(
    hosts: TwoHosts, client: Workload, greeting: Workload, version: int
) -> None:
    if hosts.slimds["a"].guard != "kernel":
        pytest.skip("the portable guard does not promise it")
    connection = client.probe(peers.stay, greeting.address(version), GREETING_PORT + version)
    connection.result()
    loopback, anywhere = ("127.0.0.1", "0.0.0.0") if version == 4 else ("::1", "::")
    # We are a process without any filter.
    with host_socket_of(connection.pid) as sock:
        assert sock.getpeername()[0] == greeting.address(version)
        disconnect(sock)
        for address in (loopback, str(hosts.host("b").address4 if version == 4 else loopback)):
            with pytest.raises(PermissionError):
                sock.connect((address, 22))
        with pytest.raises(PermissionError):
            sock.bind((anywhere, 0))
        with pytest.raises(PermissionError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, 1)
    connection.stop()


def test_interfaces_of_the_host_are_not_shown(
    hosts: TwoHosts, client: Workload, greeting: Workload
) -> None:
    seen = client.call(interfaces.ask, greeting.address4, GREETING_PORT + 4)
    is_guarded = hosts.slimds["a"].guard == "kernel"
    assert seen == {"interface": "EPERM" if is_guarded else "", "socket": ""}


def host_socket_of(pid: int) -> socket.socket:
    """A duplicate of the one host socket that a process has."""
    threads = ThreadPidfds()
    try:
        for name in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                fd = threads.getfd(pid, int(name))
                if os.fstat(fd).st_uid >= SYNTHETIC_UID_BASE:
                    return socket.socket(fileno=fd)
                os.close(fd)
    finally:
        threads.close()
    raise AssertionError(f"process {pid} has no host socket")


def disconnect(sock: socket.socket) -> None:
    """connect(2) with AF_UNSPEC."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.connect(sock.fileno(), bytes(16), 16) < 0:
        raise OSError(ctypes.get_errno(), "connect AF_UNSPEC")
