"""The servers: unmodified programs of Debian, started anywhere, each with its own load tool."""

from __future__ import annotations

import pwd
import shutil
import signal
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from lab import loads
from lab.commands import run
from lab.processes import Process, is_listening
from slim.broker.endpoints import Endpoint
from slim.broker.errors import SlimError

if TYPE_CHECKING:
    from lab.loads import Load
    from lab.places import Place

READY_S = 20.0
PAGE_BYTES = 1024


@dataclass(slots=True, kw_only=True, eq=False)
class Server:
    """A running server; `endpoint` is where its clients find it."""

    process: Process
    endpoint: Endpoint
    stop_signal: signal.Signals = signal.SIGTERM

    def stop(self) -> None:
        self.process.stop(self.stop_signal)


class Program(Protocol):
    """A server program and the load that goes with it."""

    @property
    def name(self) -> str:
        """Name in results."""

    @property
    def unit(self) -> str:
        """What the load counts per second."""

    @property
    def requires(self) -> tuple[str, ...]:
        """Programs that must be installed."""

    def start(self, place: Place, directory: Path, core: int | None) -> Server:
        """Start the server and wait until it listens; `directory` is new and its own."""

    def load(self, server: Endpoint, seconds: int, rate: float | None) -> Load:
        """The load for about `seconds`; `rate` is what an earlier one measured, if any did."""


@dataclass(frozen=True, slots=True)
class Nginx:
    """A static page over connections that are kept alive."""

    name: str = "nginx"
    unit: str = "requests/s"
    requires: tuple[str, ...] = ("nginx", "wrk")
    port: int = 8080

    def start(self, place: Place, directory: Path, core: int | None) -> Server:
        (directory / "page").write_bytes(b"x" * PAGE_BYTES)
        endpoint = Endpoint(place.address, self.port)
        config = directory / "nginx.conf"
        config.write_text(
            f"""\
daemon off;
user root;
worker_processes 1;
pid {directory}/nginx.pid;
error_log stderr warn;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    keepalive_requests 1000000000;
    open_file_cache max=8;
    server {{
        listen {endpoint};
        root {directory};
    }}
}}
"""
        )
        # -e: before it reads the file nginx would open a log below /var/log.
        argv = ("nginx", "-e", "stderr", "-p", str(directory), "-c", str(config))
        return start_server(self.name, place, argv, endpoint, directory, core)

    def load(self, server: Endpoint, seconds: int, rate: float | None) -> Load:
        return loads.wrk(f"http://{server}/page", seconds)


@dataclass(frozen=True, slots=True)
class Memcached:
    name: str = "memcached"
    unit: str = "operations/s"
    requires: tuple[str, ...] = ("memcached", "memcaslap")
    port: int = 11211
    threads: int = 1

    def start(self, place: Place, directory: Path, core: int | None) -> Server:
        endpoint = Endpoint(place.address, self.port)
        size = ("-m", "256", "-t", str(self.threads))
        where = ("-l", str(place.address), "-p", str(self.port), "-U", "0")
        argv = ("memcached", "-u", "root", *where, *size)
        return start_server(self.name, place, argv, endpoint, directory, core)

    def load(self, server: Endpoint, seconds: int, rate: float | None) -> Load:
        return loads.memcaslap(server, seconds)


@dataclass(frozen=True, slots=True)
class Redis:
    name: str = "redis"
    unit: str = "operations/s"
    requires: tuple[str, ...] = ("redis-server", "redis-benchmark")
    port: int = 6379

    def start(self, place: Place, directory: Path, core: int | None) -> Server:
        endpoint = Endpoint(place.address, self.port)
        where = ("--bind", str(place.address), "--port", str(self.port), "--dir", str(directory))
        keep = ("--save", "", "--appendonly", "no", "--protected-mode", "no")
        argv = ("redis-server", *where, *keep)
        return start_server(self.name, place, argv, endpoint, directory, core)

    def load(self, server: Endpoint, seconds: int, rate: float | None) -> Load:
        return loads.redis_benchmark(server, seconds, rate)


@dataclass(slots=True)
class Postgres:
    """Its clusters are copies of one that is made first; it refuses to run as root."""

    name: str = "postgres"
    unit: str = "transactions/s"
    requires: tuple[str, ...] = ("pgbench", "setpriv")
    port: int = 5432
    user: str = "postgres"
    _cluster: Path | None = field(default=None, repr=False)

    def start(self, place: Place, directory: Path, core: int | None) -> Server:
        if self._cluster is None or not self._cluster.exists():
            self._cluster = self._make_cluster(directory.parent / "postgres-template")
        shutil.chown(directory, self.user)
        cluster = directory / "cluster"
        run("cp", "--archive", "--reflink=auto", str(self._cluster), str(cluster))
        endpoint = Endpoint(place.address, self.port)
        argv = self._server(cluster, directory, str(place.address))
        server = start_server(self.name, place, argv, endpoint, directory, core)
        server.stop_signal = signal.SIGINT  # "fast": does not wait for clients
        return server

    def load(self, server: Endpoint, seconds: int, rate: float | None) -> Load:
        return loads.pgbench(server, seconds, self.user)

    def _make_cluster(self, directory: Path) -> Path:
        directory.mkdir(mode=0o755)
        shutil.chown(directory, self.user)
        cluster = directory / "cluster"
        initdb = (self._binary("initdb"), "--no-sync", "--no-locale", "--encoding", "UTF8")
        run(*self._as_user(), *initdb, "--auth", "trust", "--pgdata", str(cluster), timeout_s=60)
        with (cluster / "pg_hba.conf").open("a") as access:
            access.write("host all all all trust\n")
        argv = self._server(cluster, directory, "")
        process = Process("postgres (template)", argv, directory / "log")
        try:
            process.wait_until((directory / f".s.PGSQL.{self.port}").exists, READY_S)
            ready = ["pg_isready", "--quiet", "--host", str(directory), "--port", str(self.port)]
            process.wait_until(lambda: _succeeds(ready), READY_S)
            fill = ("pgbench", "--initialize", "--quiet", "--host", str(directory))
            run(*fill, "--port", str(self.port), "--username", self.user, "postgres", timeout_s=60)
        finally:
            process.stop(signal.SIGINT, timeout_s=20)
        return cluster

    def _server(self, cluster: Path, sockets: Path, address: str) -> tuple[str, ...]:
        settings = {
            "listen_addresses": address,
            "port": str(self.port),
            "unix_socket_directories": str(sockets),
            # Nothing of the data outlives the lab.
            "fsync": "off",
            "autovacuum": "off",
            "jit": "off",
            # Files in the cluster: what is left in /dev/shm after a kill would stay there.
            "dynamic_shared_memory_type": "mmap",
        }
        words = [word for key, value in settings.items() for word in ("-c", f"{key}={value}")]
        return (*self._as_user(), self._binary("postgres"), "-D", str(cluster), *words)

    def _as_user(self) -> tuple[str, ...]:
        # Not runuser(1), which stays as a parent and so hides the server from our signals.
        group = str(pwd.getpwnam(self.user).pw_gid)
        return ("setpriv", "--reuid", self.user, "--regid", group, "--init-groups")

    @staticmethod
    def _binary(name: str) -> str:
        """Debian keeps the server's programs out of PATH, one directory per version."""
        found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
        path = str(found[-1]) if found else shutil.which(name)
        if path is None:
            raise SlimError(f"{name} is not installed", hint="apt-get install postgresql")
        return path


def start_server(
    name: str,
    place: Place,
    argv: tuple[str, ...],
    endpoint: Endpoint,
    directory: Path,
    core: int | None,
) -> Server:
    """Start it and wait until its port is open in its own network namespace."""
    process = Process(f"{name} in {place.name}", place.command(argv, core), directory / "log")
    try:
        process.wait_until(lambda: is_listening(process.pid, endpoint.port), READY_S)
    except BaseException:
        process.stop()
        raise
    return Server(process=process, endpoint=endpoint)


def _succeeds(argv: list[str]) -> bool:
    try:
        run(*argv)
    except SlimError:
        return False
    return True
