"""The lab with its three contenders, and, for one that cannot run, why not."""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING, Self

from lab.hosts import Lab, uninterrupted
from lab.machines import Machine
from lab.places import Contender, Site
from lab.slimd import Slimd, make_authority
from slim.broker.errors import SlimError

if TYPE_CHECKING:
    from collections.abc import Collection
    from types import TracebackType

log = logging.getLogger(__name__)


class Testbed:
    """Host network, overlay and Slim side by side on the same two hosts; a context manager.

    The overlay's containers are not Slim's: no slimd ever hears of them.
    """

    __test__ = False  # pytest takes every class that is called Test... for its own.

    def __init__(self, contenders: Collection[Contender] = tuple(Contender)) -> None:
        self._wanted = contenders
        self._open = contextlib.ExitStack()
        self.lab = Lab()
        self.sites: dict[Contender, Site] = {}
        self.absent: dict[Contender, str] = {}
        """Contenders that were asked for and cannot run: the reason."""
        self.slimds: list[Slimd] = []

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.lab)
            if Contender.HOST in self._wanted:
                a, b = (host.place() for host in self.lab.hosts.values())
                self.sites[Contender.HOST] = Site(contender=Contender.HOST, client=a, server=b)
            if Contender.OVERLAY in self._wanted:
                a, b = (self.lab.add_container(host).place() for host in self.lab.hosts.values())
                self.sites[Contender.OVERLAY] = Site(
                    contender=Contender.OVERLAY, client=a, server=b
                )
            if Contender.SLIM in self._wanted:
                self._try_slim(stack)
            self._open = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with uninterrupted():
            self._open.close()

    def drop(self, contender: Contender, reason: str) -> None:
        """The contender cannot run after all."""
        self.sites.pop(contender, None)
        self.absent[contender] = reason

    def _try_slim(self, stack: contextlib.ExitStack) -> None:
        try:
            with contextlib.ExitStack() as attempt:
                self._start_slim(attempt)
                stack.push(attempt.pop_all())
        except SlimError as error:
            log.warning("slim cannot run: %s", error)
            self.slimds.clear()
            self.drop(Contender.SLIM, str(error))

    def _start_slim(self, stack: contextlib.ExitStack) -> None:
        authority = make_authority(self.lab.directory / "authority")
        places = []
        for host, workload in zip(self.lab.hosts.values(), ("client", "server"), strict=True):
            container = self.lab.add_container(host)
            machine = stack.enter_context(Machine(host))
            slimd = stack.enter_context(Slimd(machine, authority))
            self.slimds.append(slimd)
            places.append(slimd.place(container, workload))
        client, server = places
        self.sites[Contender.SLIM] = Site(contender=Contender.SLIM, client=client, server=server)
