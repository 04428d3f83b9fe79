"""Host paths: whether a host endpoint can be reached from here, known before a program needs it.

A path is good after a probe of slimd's own got through: a TCP handshake with the host listener,
without a byte and ended by a reset. The listener defers accepting until data is there
(TCP_DEFER_ACCEPT), so no program ever sees a probe. A failed path is left alone for a while,
longer each time.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from slim.broker.kernel import sockaddr
from slim.broker.kernel.socket_options import reset

if TYPE_CHECKING:
    from collections.abc import Callable

    from slim.broker.endpoints import Endpoint

log = logging.getLogger(__name__)

GOOD_S = 60.0
BACK_OFF_FIRST_S = 1.0
BACK_OFF_LAST_S = 60.0
PROBE_LIMIT_S = 1.0
MAX_PATHS = 65_536


@dataclass(slots=True)
class Path:
    good_until: float = 0.0
    failed_until: float = 0.0
    back_off_s: float = BACK_OFF_FIRST_S
    error: str = ""


class HostPaths:
    """Paths by host endpoint."""

    def __init__(self) -> None:
        self._paths: dict[Endpoint, Path] = {}
        self._probes: dict[Endpoint, asyncio.Task[bool]] = {}
        self.on_failed: Callable[[Endpoint, str], None] = lambda endpoint, error: None
        """Told whenever a probe or a connection did not get through."""

    async def is_good(self, endpoint: Endpoint) -> bool:
        """Whether the path works, by a recent probe or one made now, which callers share."""
        path = self._paths.get(endpoint)
        now = time.monotonic()
        if path is not None and path.good_until > now:
            return True
        if path is not None and path.failed_until > now:
            return False
        probe = self._probes.get(endpoint)
        if probe is None:
            probe = self._probes[endpoint] = asyncio.create_task(self._probe(endpoint))
        # The caller may give up; the probe's result is of use to the next one.
        return await asyncio.shield(probe)

    def failed(self, endpoint: Endpoint, error: str) -> None:
        """A connection or a probe did not get through."""
        path = self._path(endpoint)
        path.good_until = 0.0
        path.failed_until = time.monotonic() + path.back_off_s
        path.back_off_s = min(2 * path.back_off_s, BACK_OFF_LAST_S)
        path.error = error
        self.on_failed(endpoint, error)

    def forget(self, endpoint: Endpoint) -> None:
        """The listener there is gone, or new."""
        self._paths.pop(endpoint, None)

    def failures(self) -> dict[Endpoint, str]:
        now = time.monotonic()
        return {
            endpoint: path.error
            for endpoint, path in self._paths.items()
            if path.failed_until > now
        }

    def _path(self, endpoint: Endpoint) -> Path:
        if len(self._paths) >= MAX_PATHS:
            self._paths.clear()
        return self._paths.setdefault(endpoint, Path())

    async def _probe(self, endpoint: Endpoint) -> bool:
        try:
            error = await _handshake(endpoint)
        finally:
            del self._probes[endpoint]
        if error:
            self.failed(endpoint, error)
            return False
        path = self._path(endpoint)
        path.good_until = time.monotonic() + GOOD_S
        path.failed_until = 0.0
        path.back_off_s = BACK_OFF_FIRST_S
        return True


async def _handshake(endpoint: Endpoint) -> str:
    """Connect and reset; gives what went wrong, or nothing."""
    domain = socket.AF_INET6 if endpoint.address.version == 6 else socket.AF_INET
    sock = socket.socket(domain, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        await asyncio.wait_for(
            loop.sock_connect(sock, sockaddr.for_python(endpoint, domain)), PROBE_LIMIT_S
        )
    except TimeoutError:
        return "timed out"
    except OSError as error:
        # asyncio puts a text of its own, with the address, in place of the kernel's.
        return os.strerror(error.errno) if error.errno else str(error)
    finally:
        with contextlib.suppress(OSError):
            reset(sock)
    return ""
