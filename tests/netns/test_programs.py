"""Real programs, unmodified, across hosts and on one host, over IPv4 and IPv6."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from lab import loads
from lab.programs import Memcached, Postgres, Redis

from support.compatibility import Cases
from support.polling import eventually
from support.probes import listening, memcache, peers, visiting
from support.programs import NGINX_WORKERS, build_go, build_static, start_nginx

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from lab.programs import Server

    from support.two_hosts import TwoHosts, Workload

    Started = Callable[[str, Callable[[Path], Server]], Server]

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_netns]
COMPATIBILITY = Cases(heading="Programs")

LOAD_S = 1
VERSIONS = pytest.mark.parametrize("version", [4, 6])


@dataclass(frozen=True, slots=True, kw_only=True)
class Visitor:
    """Where a client runs: on another host than the server, or on the same."""

    host: str
    workload: Workload


@pytest.fixture(scope="module")
def neighbour(hosts: TwoHosts) -> Workload:
    """A workload on the server's host."""
    return hosts.workload("b", "neighbour", app="client")


@pytest.fixture(params=["across hosts", "on one host"])
def visitor(request: pytest.FixtureRequest, client: Workload, neighbour: Workload) -> Visitor:
    if request.param == "across hosts":
        return Visitor(host="a", workload=client)
    return Visitor(host="b", workload=neighbour)


@pytest.fixture(scope="module")
def directory(hosts: TwoHosts) -> Path:
    return hosts.directory("programs")


@pytest.fixture(scope="module")
def started(directory: Path) -> Iterator[Started]:
    """Starts each server once for the module, by name."""
    servers: dict[str, Server] = {}

    def get(name: str, start: Callable[[Path], Server]) -> Server:
        if name not in servers:
            own = directory / name
            own.mkdir(mode=0o755)
            servers[name] = start(own)
        return servers[name]

    yield get
    for server in servers.values():
        server.stop()


def run_load(hosts: TwoHosts, visitor: Visitor, server: Server, load: loads.Load) -> float:
    """Run a load to its end; all its connections must be fast. Gives operations per second."""
    running = visitor.workload.start(*load.argv)

    def paths() -> list[tuple[str, str]]:
        rows = hosts.rows(visitor.host, "out", to=str(server.endpoint))
        return [(row.path, row.reason) for row in rows if row.workload == visitor.workload.name]

    seen = eventually(paths, "the load is connected", 10)
    output, _ = running.popen.communicate(timeout=30)
    assert running.popen.returncode == 0, output
    assert set(seen) == {("fast", "")}
    return load.parse(output).rate


@VERSIONS
@pytest.mark.needs_program("nginx", "wrk")
def test_nginx_under_wrk(
    hosts: TwoHosts, visitor: Visitor, server: Workload, started: Started, version: int
) -> None:
    nginx = started(
        f"nginx{version}", lambda own: start_nginx(server.place(version), own, 8080 + version)
    )
    load = loads.wrk(f"http://{nginx.endpoint}/who", LOAD_S)
    assert run_load(hosts, visitor, nginx, load) > 100


@VERSIONS
@pytest.mark.needs_program("nginx", "curl")
def test_nginx_sees_the_clients_own_address_and_curl_gets_every_byte(
    visitor: Visitor, server: Workload, started: Started, version: int
) -> None:
    nginx = started(
        f"nginx{version}", lambda own: start_nginx(server.place(version), own, 8080 + version)
    )
    base = f"http://{nginx.endpoint}"
    shown = visitor.workload.run("curl", "-sSg", "-w", "%{local_ip} %{remote_ip}", f"{base}/who")
    told, used = shown.splitlines()
    address, _, server_address = told.split()
    assert address == visitor.workload.address(version)
    assert server_address == server.address(version)
    assert used.split() == [address, server_address]
    assert visitor.workload.run("curl", "-sSg", f"{base}/page") == "x" * 100_000


@VERSIONS
@pytest.mark.needs_program("memcached")
def test_memcached_gives_back_what_it_was_given(
    visitor: Visitor, server: Workload, started: Started, version: int
) -> None:
    memcached = started(
        f"memcached{version}",
        lambda own: Memcached(port=11200 + version, threads=4).start(
            server.place(version), own, None
        ),
    )
    where = (server.address(version), memcached.endpoint.port)
    assert visitor.workload.call(memcache.store_and_fetch, *where, 8, 200) == 200


@VERSIONS
@pytest.mark.needs_program("redis-server", "redis-benchmark", "redis-cli")
def test_redis_under_its_benchmark(
    hosts: TwoHosts, visitor: Visitor, server: Workload, started: Started, version: int
) -> None:
    redis = started(
        f"redis{version}",
        lambda own: Redis(port=6300 + version).start(server.place(version), own, None),
    )
    load = loads.redis_benchmark(redis.endpoint, LOAD_S, 5_000)
    assert run_load(hosts, visitor, redis, load) > 100
    where = ("-h", str(redis.endpoint.address), "-p", str(redis.endpoint.port))
    info = visitor.workload.run("redis-cli", *where, "client", "list")
    own = visitor.workload.address(version)
    assert f" addr={own}:" in info or f" addr=[{own}]:" in info


@VERSIONS
@pytest.mark.needs_program("postgres", "initdb", "psql", "pgbench", "pg_isready")
def test_postgres_under_pgbench(
    hosts: TwoHosts, visitor: Visitor, server: Workload, started: Started, version: int
) -> None:
    postgres = _postgres(started, server, version)
    assert run_load(hosts, visitor, postgres, loads.pgbench(postgres.endpoint, 1, USER)) > 10


@VERSIONS
@pytest.mark.needs_program("postgres", "initdb", "psql", "pgbench", "pg_isready")
def test_postgres_with_a_connection_per_transaction(
    visitor: Visitor, server: Workload, started: Started, version: int
) -> None:
    postgres = _postgres(started, server, version)
    where = ("-h", str(postgres.endpoint.address), "-p", str(postgres.endpoint.port), "-U", USER)
    size = ("-S", "-C", "-n", "-c", "4", "-t", "25")
    output = visitor.workload.run("pgbench", *where, *size, "postgres")
    assert "number of transactions actually processed: 100/100" in output


@VERSIONS
@pytest.mark.needs_program("postgres", "initdb", "psql", "pgbench", "pg_isready")
def test_postgres_sees_the_clients_own_address(
    visitor: Visitor, server: Workload, started: Started, version: int
) -> None:
    postgres = _postgres(started, server, version)
    where = ("-h", str(postgres.endpoint.address), "-p", str(postgres.endpoint.port), "-U", USER)
    question = "select host(inet_client_addr()), host(inet_server_addr()), inet_server_port()"
    answer = visitor.workload.run("psql", *where, "-Atc", question, "postgres").strip()
    own, its = visitor.workload.address(version), server.address(version)
    assert answer == f"{own}|{its}|{postgres.endpoint.port}"


USER = Postgres().user
_cluster = Postgres()


def _postgres(started: Started, server: Workload, version: int) -> Server:
    def start(own: Path) -> Server:
        # One cluster is made, and copied for each server.
        _cluster.port = 5430 + version
        return _cluster.start(server.place(version), own, None)

    return started(f"postgres{version}", start)


@pytest.mark.needs_program("cc")
def test_static_program(
    hosts: TwoHosts, visitor: Visitor, server: Workload, directory: Path
) -> None:
    greet = build_static(directory)
    _check_greet(hosts, visitor, server, greet, 8400, 1)


@pytest.mark.needs_program("go")
@pytest.mark.timeout(240)  # With nothing in its cache the compiler builds its library first.
def test_go_program(hosts: TwoHosts, visitor: Visitor, server: Workload, directory: Path) -> None:
    greet = build_go(directory)
    _check_greet(hosts, visitor, server, greet, 8410, 20)


def _check_greet(
    hosts: TwoHosts, visitor: Visitor, server: Workload, greet: Path, port: int, lines: int
) -> None:
    """The program as server and as client, both addresses right at both ends."""
    for version, anywhere in ((4, "0.0.0.0"), (6, "::")):
        at = str(port + version)
        running = server.start(str(greet), "server", anywhere, at)
        assert running.result() == "listening"
        listeners = [row.overlay_local for row in hosts.rows("b", "listen")]
        # Go listens on [::] where 0.0.0.0 was asked for.
        assert any(name.endswith(f":{at}") for name in listeners)
        address = server.address(version)
        shown = visitor.workload.run(str(greet), "client", address, at).splitlines()
        assert len(shown) == lines
        for line in shown:
            told, own, peer = line.split()
            assert told == own
            assert visitor.workload.address(version) in own
            assert peer == peers.endpoint((address, port + version))
        running.stop()


@VERSIONS
def test_every_worker_of_a_preforking_server_sees_true_addresses(
    client: Workload, neighbour: Workload, server: Workload, version: int
) -> None:
    """Two workloads at once, on both hosts, a few hundred connections."""
    port = 8500 + version
    anywhere = {4: "0.0.0.0", 6: "::"}[version]
    running = server.probe(listening.prefork, anywhere, port, NGINX_WORKERS)
    running.result()
    where = (server.address(version), port, 150)
    first = client.probe(visiting.visit_often, *where)
    second = neighbour.probe(visiting.visit_often, *where)
    workers: set[int] = set()
    for seen in (first.result(), second.result()):
        assert seen["wrong"] == []
        assert sum(count for _, count in seen["served"]) == 150
        workers |= {pid for pid, _ in seen["served"]}
    assert len(workers) > 1, json.dumps(sorted(workers))
    running.stop()
