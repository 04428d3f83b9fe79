"""nftables in a network namespace, for the time of a with-block."""

from __future__ import annotations

import contextlib
import itertools
import json
from typing import TYPE_CHECKING

from lab.commands import run

if TYPE_CHECKING:
    from collections.abc import Iterator

_numbers = itertools.count()


@contextlib.contextmanager
def filtering(netns: str, *rules: str, hook: str = "input") -> Iterator[None]:
    """These rules are in force, each without its chain, as `tcp dport 80 drop`."""
    with _table(netns, hook, rules):
        yield


class Counter:
    """Packets that matched."""

    def __init__(self, netns: str, table: str) -> None:
        self._netns = netns
        self._table = table

    def packets(self) -> int:
        nft = ("ip", "netns", "exec", self._netns, "nft")
        output = run(*nft, "-j", "list", "table", "inet", self._table)
        for entry in json.loads(output)["nftables"]:
            for expression in entry.get("rule", {}).get("expr", []):
                if "counter" in expression:
                    return int(expression["counter"]["packets"])
        raise AssertionError(f"no counter in {output}")


@contextlib.contextmanager
def counting(netns: str, match: str, hook: str = "output") -> Iterator[Counter]:
    """A counter of packets that match, as `tcp dport 80`."""
    with _table(netns, hook, (f"{match} counter",)) as table:
        yield Counter(netns, table)


@contextlib.contextmanager
def _table(netns: str, hook: str, rules: tuple[str, ...]) -> Iterator[str]:
    table = f"test{next(_numbers)}"
    nft = ("ip", "netns", "exec", netns, "nft")
    body = "\n".join((f"type filter hook {hook} priority 0", *rules))
    run(*nft, f"table inet {table} {{\nchain c {{\n{body}\n}}\n}}\n")
    try:
        yield table
    finally:
        run(*nft, "delete", "table", "inet", table)
