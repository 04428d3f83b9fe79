"""`slimctl cut`: an administrator ends connections, at both ends.

What is shown, and agreed to, is what is cut: slimd is told which sockets, never a filter.
"""

from __future__ import annotations

import ipaddress
from collections import defaultdict
from typing import TYPE_CHECKING, TypeAlias

import click

from slim.broker.admin import client, messages
from slim.broker.cli.connections import COLUMNS
from slim.broker.cli.tables import print_table
from slim.broker.endpoints import Endpoint

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from slim.broker.endpoints import Network

    Test: TypeAlias = Callable[[messages.Connection], bool]

COOKIES_PER_REQUEST = 4096


@click.command()
@click.argument("terms", nargs=-1, required=True, metavar="FILTER...")
@click.option("--dry-run", is_flag=True, help="Show what would be cut, and cut nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def cut(run_dir: Path, terms: tuple[str, ...], dry_run: bool, yes: bool) -> None:
    """End the connections that match, at both ends.

    FILTER is one or more of workload:NAME, src:NETWORK (who connected), dst:NETWORK, port:NUMBER
    (of dst), path:fast or path:fallback, id:COOKIE (of `connections --json`). Different ones must
    all hold, of the same one any.
    """
    matches = parse_filter(terms)
    answer = client.ask(run_dir, messages.GetConnections(), messages.Connections).connections
    rows = [
        row for row in answer if row.direction != "listen" and row.path != "denied" and matches(row)
    ]
    rows.sort(key=lambda row: (row.workload, row.direction, -row.age_s))
    print_table(rows, COLUMNS, empty="no connection matches")
    if dry_run or not rows:
        return
    if not yes:
        click.confirm(f"End these {len(rows)} connections?", abort=True, err=True)
    ended = 0
    cookies = [row.cookie for row in rows]
    for start in range(0, len(cookies), COOKIES_PER_REQUEST):
        request = messages.Cut(cookies[start : start + COOKIES_PER_REQUEST])
        ended += len(client.ask(run_dir, request, messages.CutDone).cookies)
    gone = len(rows) - ended
    click.echo(f"{ended} cut" + (f", {gone} had ended by themselves" if gone else ""))


def parse_filter(terms: tuple[str, ...]) -> Test:
    """What the terms say of a connection; click.BadParameter names the term that says nothing."""
    tests: dict[str, list[Test]] = defaultdict(list)
    for term in terms:
        key, colon, value = term.partition(":")
        make = _TERMS.get(key)
        if not colon or make is None:
            raise click.BadParameter(
                f"{term!r} begins with none of {', '.join(f'{name}:' for name in _TERMS)}"
            )
        try:
            tests[key].append(make(value))
        except ValueError as error:
            raise click.BadParameter(f"{term!r}: {error}") from None
    return lambda row: all(any(test(row) for test in same) for same in tests.values())


def _ends(row: messages.Connection) -> tuple[Endpoint | None, Endpoint | None]:
    """Who connected, and to what."""
    local, peer = (
        Endpoint.parse(text) if text else None for text in (row.overlay_local, row.overlay_peer)
    )
    return (peer, local) if row.direction == "in" else (local, peer)


def _workload(value: str) -> Test:
    if not value:
        raise ValueError("a name is missing")
    return lambda row: row.workload == value


def _within(end: Endpoint | None, network: Network) -> bool:
    return end is not None and end.address in network


def _source(value: str) -> Test:
    network = ipaddress.ip_network(value)
    return lambda row: _within(_ends(row)[0], network)


def _destination(value: str) -> Test:
    network = ipaddress.ip_network(value)
    return lambda row: _within(_ends(row)[1], network)


def _port(value: str) -> Test:
    port = _number(value)

    def test(row: messages.Connection) -> bool:
        to = _ends(row)[1]
        return to is not None and to.port == port

    return test


def _path(value: str) -> Test:
    if value not in ("fast", "fallback"):
        raise ValueError("a path is fast or fallback")
    return lambda row: row.path == value


def _cookie(value: str) -> Test:
    cookie = _number(value)
    return lambda row: row.cookie == cookie


def _number(value: str) -> int:
    if not (value.isascii() and value.isdigit()):
        raise ValueError("it takes a number")
    return int(value)


_TERMS: dict[str, Callable[[str], Test]] = {
    "workload": _workload,
    "src": _source,
    "dst": _destination,
    "port": _port,
    "path": _path,
    "id": _cookie,
}
