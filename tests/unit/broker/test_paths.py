"""Host paths, probed over loopback."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import time
from typing import TYPE_CHECKING

import pytest

from slim.broker import paths as paths_module
from slim.broker.endpoints import Endpoint
from slim.broker.paths import HostPaths

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(5)
        yield listening


def endpoint(sock: socket.socket) -> Endpoint:
    host, port = sock.getsockname()[:2]
    return Endpoint(ipaddress.ip_address(host), port)


@pytest.fixture
def closed() -> Iterator[Endpoint]:
    """An endpoint that refuses: bound, and nobody listens."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield endpoint(bound)


def test_a_listener_that_takes_the_handshake_is_a_good_path(listener: socket.socket) -> None:
    paths = HostPaths()
    assert asyncio.run(paths.is_good(endpoint(listener)))
    assert paths.failures() == {}


def test_a_probe_sends_nothing_and_ends_with_a_reset(listener: socket.socket) -> None:
    assert asyncio.run(HostPaths().is_good(endpoint(listener)))
    with listener.accept()[0] as probe, pytest.raises(ConnectionResetError):
        probe.recv(1)


def test_ipv6_is_probed_too() -> None:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as listening:
        assert asyncio.run(HostPaths().is_good(endpoint(listening)))


def test_a_refusing_host_is_a_failed_path(closed: Endpoint) -> None:
    paths = HostPaths()
    assert not asyncio.run(paths.is_good(closed))
    assert paths.failures() == {closed: "Connection refused"}


def test_a_host_that_does_not_answer_is_a_failed_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths_module, "PROBE_LIMIT_S", 0.05)
    with socket.socket() as full, socket.socket() as first:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        # The queue of one is full: further SYNs are dropped.
        first.connect(full.getsockname())
        paths = HostPaths()
        assert not asyncio.run(paths.is_good(endpoint(full)))
        assert paths.failures() == {endpoint(full): "timed out"}


def test_a_good_path_is_not_probed_again(listener: socket.socket) -> None:
    async def twice(paths: HostPaths) -> bool:
        return await paths.is_good(endpoint(listener)) and await paths.is_good(endpoint(listener))

    assert asyncio.run(twice(HostPaths()))
    listener.accept()[0].close()
    listener.settimeout(0.05)
    with pytest.raises(TimeoutError):
        listener.accept()


def test_callers_share_one_probe(listener: socket.socket) -> None:
    async def together(paths: HostPaths) -> list[bool]:
        return await asyncio.gather(*(paths.is_good(endpoint(listener)) for _ in range(20)))

    assert asyncio.run(together(HostPaths())) == [True] * 20
    listener.accept()[0].close()
    listener.settimeout(0.05)
    with pytest.raises(TimeoutError):
        listener.accept()


def test_a_caller_that_gives_up_does_not_end_the_probe(listener: socket.socket) -> None:
    async def impatient(paths: HostPaths) -> bool:
        caller = asyncio.create_task(paths.is_good(endpoint(listener)))
        await asyncio.sleep(0)
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
        return await paths.is_good(endpoint(listener))

    assert asyncio.run(impatient(HostPaths()))


def test_a_failed_path_is_left_alone_longer_each_time(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    paths, at = HostPaths(), endpoint(listener)
    waits = []
    for _ in range(8):
        paths.failed(at, "refused")
        before = now
        while paths.failures():
            now += 0.5
        waits.append(now - before)
    assert waits[:4] == [1, 2, 4, 8]
    assert waits[-1] == 60
    paths.failed(at, "refused")
    assert paths.failures() == {at: "refused"}
    paths.forget(at)
    assert paths.failures() == {}


def test_a_failure_ends_a_good_path_and_a_success_the_back_off(listener: socket.socket) -> None:
    paths, at = HostPaths(), endpoint(listener)
    assert asyncio.run(paths.is_good(at))
    paths.failed(at, "reset")
    assert not asyncio.run(paths.is_good(at))
    assert paths.failures() == {at: "reset"}
    paths.forget(at)
    assert asyncio.run(paths.is_good(at))


def test_the_table_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths_module, "MAX_PATHS", 3)
    paths = HostPaths()
    for port in range(1, 20):
        paths.failed(Endpoint(ipaddress.ip_address("127.0.0.1"), port), "x")
        assert len(paths.failures()) <= 3
