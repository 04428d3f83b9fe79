"""Cutting what records name, with SOCK_DESTROY and without, in the host's namespace and others."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from typing import TYPE_CHECKING, Literal

import pytest

from slim.broker import cutting, reporting
from slim.broker.connections import ConnectionRecord, pack
from slim.broker.cutting import Victim
from slim.broker.endpoints import Endpoint
from slim.broker.kernel.socket_options import read_cookie
from support.brokering import FakePlugins, registry

if TYPE_CHECKING:
    from collections.abc import Iterator

    from slim.broker.registry import Registry

pytestmark = pytest.mark.needs_root

ENDED = (ConnectionAbortedError, ConnectionResetError)


@pytest.fixture
def workloads() -> Registry:
    return registry(FakePlugins(), ipaddress.ip_network("10.1.0.0/16"))


@pytest.fixture
def pairs() -> Iterator[list[tuple[socket.socket, socket.socket]]]:
    """Two connections over loopback."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        made = []
        for _ in range(2):
            client = socket.create_connection(listener.getsockname(), timeout=5)
            server, _ = listener.accept()
            server.settimeout(5)
            made.append((client, server))
        yield made
        for pair in made:
            for end in pair:
                end.close()


def record(sock: socket.socket, path: Literal["fast", "denied"] = "fast") -> ConnectionRecord:
    end = pack(Endpoint.parse("10.1.0.1:80"))
    return ConnectionRecord(
        cookie=read_cookie(sock),
        workload=7,
        direction="out",
        local=end,
        peer=end,
        host_peer=end,
        peer_host="b",
        path=path,
        reason="",
        rule="",
        pid=1,
        created=0.0,
    )


@pytest.mark.parametrize("destroys", [True, False], ids=["SOCK_DESTROY", "through the fd"])
def test_the_victim_ends_at_both_ends_and_no_other(
    monkeypatch: pytest.MonkeyPatch,
    workloads: Registry,
    pairs: list[tuple[socket.socket, socket.socket]],
    destroys: bool,
) -> None:
    monkeypatch.setattr(cutting, "_destroys", lambda: destroys)
    (client, server), (other, other_server) = pairs
    doomed = record(client)
    found = reporting.find_sockets(workloads, [doomed])
    assert [*found] == [doomed.cookie]

    victim = Victim(doomed, "test:no", found[doomed.cookie])
    assert asyncio.run(cutting.cut(workloads, [victim])) == {doomed.cookie}

    for end in (client, server):
        with pytest.raises(ENDED):
            end.recv(1)
    other.sendall(b"x")
    assert other_server.recv(1) == b"x"


def test_refused_attempts_and_records_of_workloads_that_are_gone_have_no_socket(
    workloads: Registry, pairs: list[tuple[socket.socket, socket.socket]]
) -> None:
    client = pairs[0][0]
    assert reporting.find_sockets(workloads, [record(client, "denied")]) == {}


def test_what_ended_before_is_not_counted(
    workloads: Registry, pairs: list[tuple[socket.socket, socket.socket]]
) -> None:
    client, _ = pairs[0]
    doomed = record(client)
    victim = Victim(doomed, "test:no", reporting.find_sockets(workloads, [doomed])[doomed.cookie])
    assert asyncio.run(cutting.cut(workloads, [victim])) == {doomed.cookie}
    assert asyncio.run(cutting.cut(workloads, [victim])) == set()
