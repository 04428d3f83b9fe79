"""`slimctl cut`: an administrator ends connections, at both ends.

What is shown, and agreed to, is what is cut: slimd is told which sockets, never a filter.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from slim.broker.admin import client, messages
from slim.broker.cli.connections import COLUMNS, fetch
from slim.broker.cli.filtering import FilterCommand, compile_connections
from slim.broker.cli.tables import print_table

if TYPE_CHECKING:
    from pathlib import Path

COOKIES_PER_REQUEST = 4096


@click.command(cls=FilterCommand)
@click.argument("terms", nargs=-1, required=True, metavar="FILTER...")
@click.option("--dry-run", is_flag=True, help="Show what would be cut, and cut nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def cut(run_dir: Path, terms: tuple[str, ...], dry_run: bool, yes: bool) -> None:
    """End the connections that match, at both ends.

    FILTER (docs/slimctl.md) is one or more of workload:NAME, src:NAME or NETWORK (who connected),
    dst:NAME or NETWORK, port:NUMBER (of dst), path:fast or path:fallback, id:COOKIE and others,
    words and /regex/. Different keys must all hold, of the same one any.
    """
    if not "".join(terms).strip():
        raise click.UsageError("an empty filter would cut everything; dst:0.0.0.0/0 says so")
    matches = compile_connections(run_dir, terms)
    rows = [
        row
        for row in fetch(run_dir)
        if row.direction != "listen" and row.path != "denied" and matches(row)
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
