"""nginx with several workers and SO_REUSEPORT, as a proxy, and reloaded while it serves."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

from support.compatibility import Cases
from support.polling import eventually
from support.probes import visiting
from support.programs import NGINX_WORKERS, start_nginx, write_nginx_configuration

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lab.programs import Server

    from support.two_hosts import Running, TwoHosts, Workload

pytestmark = [
    pytest.mark.needs_root,
    pytest.mark.needs_netns,
    pytest.mark.needs_program("nginx", "curl", "wrk"),
]
COMPATIBILITY = Cases(heading="Programs")

PORTS = {"native": 8081, "brokered": 8082}
BACKEND_PORT = 8090


@pytest.fixture(scope="module")
def backend(hosts: TwoHosts) -> Iterator[tuple[Workload, Server]]:
    """nginx on the client's host, for the proxy to ask."""
    workload = hosts.workload("a", "backend")
    nginx = start_nginx(workload.place(), hosts.directory("backend"), BACKEND_PORT)
    yield workload, nginx
    nginx.stop()


@pytest.fixture
def proxy(hosts: TwoHosts, server: Workload, backend: tuple[Workload, Server]) -> Iterator[Server]:
    nginx = start_nginx(
        server.place(),
        hosts.directory("proxy"),
        PORTS["brokered"],
        reuseport=True,
        backend=backend[1].endpoint,
    )
    yield nginx
    nginx.stop()


def test_nginx_as_a_proxy_with_reuseport_and_a_brokered_backend(
    hosts: TwoHosts,
    client: Workload,
    server: Workload,
    backend: tuple[Workload, Server],
    proxy: Server,
) -> None:
    base = f"http://{proxy.endpoint}"
    seen = client.run("curl", "-sSg", f"{base}/backend/who", f"{base}/who").splitlines()
    by_backend, by_proxy = (line.split()[::2] for line in seen)
    assert by_backend == [server.address4, backend[0].address4]
    assert by_proxy == [client.address4, server.address4]
    assert client.run("curl", "-sSg", f"{base}/backend/page") == "x" * 100_000

    load = client.start("wrk", "-t", "1", "-c", "16", "-d", "2s", f"{base}/backend/who")
    to_backend = str(backend[1].endpoint)
    inner = eventually(lambda: hosts.rows("b", "out", to=to_backend), "the proxy asks", 10)
    outer = eventually(lambda: hosts.rows("a", "out", to=str(proxy.endpoint)), "the load runs", 10)
    assert {(row.path, row.reason) for row in inner + outer} == {("fast", "")}
    output, _ = load.popen.communicate(timeout=30)
    assert "Requests/sec" in output
    assert "Non-2xx" not in output
    assert "Socket errors" not in output


def test_every_worker_of_a_reuseport_group_serves(client: Workload, proxy: Server) -> None:
    # A connection each: the kernel spreads connections, not requests.
    urls = [f"http://{proxy.endpoint}/word"] * 100
    shown = client.run("curl", "-sSg", "-H", "Connection: close", *urls).splitlines()
    assert len(shown) == 100
    assert len({line.split()[1] for line in shown}) == NGINX_WORKERS


@pytest.mark.parametrize("reuseport", [False, True], ids=["shared listener", "reuseport"])
@pytest.mark.parametrize("contender", ["native", "brokered"])
def test_nginx_reload_loses_no_connection(
    hosts: TwoHosts, client: Workload, server: Workload, contender: str, reuseport: bool
) -> None:
    far, near = (
        (server, client) if contender == "brokered" else (hosts.plain("b"), hosts.plain("a"))
    )
    directory = hosts.directory("reload")
    port = PORTS[contender] + 10
    nginx = start_nginx(far.place(), directory, port, reuseport=reuseport)
    try:
        asking = near.probe(visiting.ask_until_told, far.address4, port, "/word")
        for number in range(4):
            word = f"word{number}"
            write_nginx_configuration(directory, nginx.endpoint, reuseport=reuseport, word=word)
            os.kill(nginx.process.pid, signal.SIGHUP)
            # The probe names each new word once.
            assert word in _next_words(asking, word)
        asking.tell("")
        seen = asking.result()
        assert seen["errors"] == []
        assert seen["answers"] > 20
    finally:
        nginx.stop()


def _next_words(asking: Running, last: str) -> list[str]:
    """What the probe met first, until it has met `last`."""
    words: list[str] = []
    while last not in words:
        words.append(asking.result())
    return words
