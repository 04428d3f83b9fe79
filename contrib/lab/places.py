"""Places: where a program runs and how one gets there, as words before its command line."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from slim.broker.endpoints import Address


class Contender(StrEnum):
    """The three networks that are compared."""

    HOST = "host"
    OVERLAY = "overlay"
    SLIM = "slim"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A network namespace, entered by `prefix`; `address` is the program's own there."""

    name: str
    address: Address
    prefix: tuple[str, ...]

    def command(self, argv: tuple[str, ...], core: int | None = None) -> list[str]:
        """The command line that runs `argv` here, on one core if given."""
        pin = () if core is None else ("taskset", "--cpu-list", str(core))
        return [*pin, *self.prefix, *argv]


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """Both ends of one contender: the client on host A, the server on host B."""

    contender: Contender
    client: Place
    server: Place


def enter_network(namespace: str) -> tuple[str, ...]:
    """Words that enter a named network namespace.

    Not `ip netns exec`, which mounts a new /sys and so hides the cgroups.
    """
    return ("nsenter", f"--net=/run/netns/{namespace}", "--")
