"""nginx that tells its clients their addresses; and programs built from support/targets."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from lab.programs import start_server

from slim.broker.endpoints import Endpoint
from support import capabilities

if TYPE_CHECKING:
    from lab.places import Place
    from lab.programs import Server

TARGETS = Path(__file__).parent / "targets"
NGINX_WORKERS = 4
BUILD_S = 200


def start_nginx(
    place: Place,
    directory: Path,
    port: int,
    *,
    reuseport: bool = False,
    backend: Endpoint | None = None,
    word: str = "first",
) -> Server:
    """Serves `/who`, the client's address, and `/page`; several workers, keep-alive.

    Also `/word`, which a reload may change, and `/backend/...`, which the backend serves.
    """
    (directory / "page").write_bytes(b"x" * 100_000)
    endpoint = Endpoint(place.address, port)
    write_nginx_configuration(directory, endpoint, reuseport=reuseport, backend=backend, word=word)
    argv = ("nginx", "-e", "stderr", "-p", str(directory), "-c", str(directory / "nginx.conf"))
    return start_server("nginx", place, argv, endpoint, directory, None)


def write_nginx_configuration(
    directory: Path,
    endpoint: Endpoint,
    *,
    reuseport: bool = False,
    backend: Endpoint | None = None,
    word: str = "first",
) -> None:
    upstream = f"upstream backend {{ server {backend}; keepalive 4; }}" if backend else ""
    location = "location /backend/ { proxy_pass http://backend/; }" if backend else ""
    (directory / "nginx.conf").write_text(
        f"""\
daemon off;
user root;
worker_processes {NGINX_WORKERS};
pid {directory}/nginx.pid;
error_log stderr warn;
events {{ worker_connections 256; }}
http {{
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    {upstream}
    server {{
        listen {endpoint}{" reuseport" if reuseport else ""};
        root {directory};
        proxy_http_version 1.1;
        proxy_set_header Connection "";
        {location}
        location /word {{ return 200 "{word} $pid\\n"; }}
        location /who {{ return 200 "$remote_addr $remote_port $server_addr\\n"; }}
    }}
}}
"""
    )


def build_static(directory: Path) -> Path:
    """greet.c, linked statically."""
    compiler = "musl-gcc" if capabilities.find("musl-gcc") else "cc"
    target = directory / "greet-static"
    argv = [compiler, "-static", "-O1", "-Wall", "-o", str(target), str(TARGETS / "greet.c")]
    _build(argv, {})
    return target


_WITHOUT_LIBRARY = (
    "cc",
    "-static",
    "-nostdlib",
    "-ffreestanding",
    "-fno-pie",
    "-no-pie",
    "-fno-stack-protector",
)
FLAVOURS = {
    "dynamic": ("cc",),
    "static": ("cc", "-static"),
    "musl": ("musl-gcc", "-static"),
    "freestanding": _WITHOUT_LIBRARY,
    "freestanding-i386": (*_WITHOUT_LIBRARY, "-m32"),
}
"""How a C program may come to its system calls: glibc as a library or within, another libc, none:
the last needs a compiler for x86_64, and none of i386's libraries."""


def build(directory: Path, name: str, flavour: str = "dynamic") -> Path:
    """A C program of support/targets, with threads."""
    target = directory / f"{name}-{flavour}"
    flags = ("-O1", "-Wall", "-Wextra", "-Werror", "-pthread")
    _build([*FLAVOURS[flavour], *flags, "-o", str(target), str(TARGETS / f"{name}.c")], {})
    return target


def build_go(directory: Path) -> Path:
    """greet.go, which then makes its system calls itself."""
    target = directory / "greet-go"
    argv = [capabilities.find("go"), "build", "-o", str(target), str(TARGETS / "greet.go")]
    _build(argv, {"CGO_ENABLED": "0", "GO111MODULE": "off", "GOFLAGS": "", "GOTOOLCHAIN": "local"})
    return target


def _build(argv: list[str], environment: dict[str, str]) -> None:
    done = subprocess.run(
        argv,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=BUILD_S,
        check=False,
    )
    assert done.returncode == 0, f"{' '.join(argv)}: {done.stderr}"
