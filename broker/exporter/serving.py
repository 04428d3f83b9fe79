"""Serves metrics over HTTP, at an address or a unix socket: a thread per scrape, few at a time."""

from __future__ import annotations

import os
import socket
import socketserver
import stat
import threading
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, make_wsgi_app

from slim.broker.errors import ConfigError

if TYPE_CHECKING:
    from slim.broker.endpoints import Endpoint

MOST_AT_ONCE = 8
REQUEST_LIMIT_S = 10.0


class _Handler(WSGIRequestHandler):
    timeout = REQUEST_LIMIT_S

    def log_message(self, format: str, *args: Any) -> None:
        """Scrapes are no news."""

    def address_string(self) -> str:
        # Of a unix socket there is none.
        return "unix" if isinstance(self.client_address, str) else super().address_string()


class _Server(socketserver.ThreadingMixIn, WSGIServer):
    daemon_threads = True
    _places = threading.BoundedSemaphore(MOST_AT_ONCE)

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._places.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()


class _Server6(_Server):
    address_family = socket.AF_INET6


class _UnixServer(_Server):
    address_family = socket.AF_UNIX

    def server_bind(self) -> None:
        _remove_stale(str(self.server_address))
        # Only who may connect: its owner and group.
        before = os.umask(0o117)
        try:
            socketserver.TCPServer.server_bind(self)
        finally:
            os.umask(before)
        self.server_name, self.server_port = "localhost", 0
        self.setup_environ()

    def get_request(self) -> tuple[socket.socket, Any]:
        request, _ = super().get_request()
        return request, "unix"


def open_server(where: Endpoint | str, registry: CollectorRegistry) -> WSGIServer:
    """Listen at the endpoint, or the path of a unix socket; who gets it serves and closes it.

    ConfigError names what cannot be listened at, and why.
    """
    server: WSGIServer
    try:
        if isinstance(where, str):
            server = _UnixServer(where, _Handler)  # type: ignore[arg-type] # a path is an address
        else:
            kind = _Server6 if where.address.version == 6 else _Server
            server = kind((str(where.address), where.port), _Handler)
    except OSError as error:
        raise ConfigError(
            f"--listen {where}: {error.strerror or error}",
            hint="name a free port of an address of this host, or the path of a unix socket",
        ) from None
    server.set_app(make_wsgi_app(registry))
    return server


def _remove_stale(path: str) -> None:
    """A socket that nobody listens at is a predecessor's; anything else is left alone."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            return
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)  # noqa: PTH108 - a plain name
