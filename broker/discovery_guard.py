"""What stands between slimd and a plugin's discovery backend: failures are no opinion."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from slim.broker.errors import in_words

if TYPE_CHECKING:
    from collections.abc import Callable

    from slim.broker.discovery import DiscoveryBackend, Located
    from slim.broker.endpoints import Address

log = logging.getLogger(__name__)

MAX_LOCATED_LIFETIME_S = 3600.0


class GuardedBackend:
    """A discovery backend whose failures are logged and count as no opinion."""

    def __init__(self, backend: DiscoveryBackend) -> None:
        self.name = backend.name
        self._backend = backend
        self._failed = False

    async def locate(self, workload: int, destination: Address) -> Located | None:
        try:
            located = await self._backend.locate(workload, destination)
            if located is None or 0 < located.lifetime_s <= MAX_LOCATED_LIFETIME_S:
                return located
            raise ValueError(f"a lifetime of {located.lifetime_s} s")
        except Exception as error:  # noqa: BLE001 - any failure is no opinion
            self._complain(f"locating {destination}", error)
            return None

    def workload_added(self, workload: int, addresses: tuple[Address, ...]) -> None:
        self._call("adding a workload", self._backend.workload_added, workload, addresses)

    def workload_removed(self, workload: int) -> None:
        self._call("removing a workload", self._backend.workload_removed, workload)

    def close(self) -> None:
        self._call("closing", self._backend.close)

    def _call(self, what: str, method: Callable[..., None], *arguments: object) -> None:
        try:
            method(*arguments)
        except Exception as error:  # noqa: BLE001 - slimd goes on without this backend
            self._complain(what, error)

    def _complain(self, what: str, error: Exception) -> None:
        # The traceback once: a broken backend fails for every flow.
        first, self._failed = not self._failed, True
        cause = error if first else None
        log.error("discovery %r: %s: %s", self.name, what, in_words(error), exc_info=cause)
