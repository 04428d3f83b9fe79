"""`slimctl listeners`: who listens, and where the host listener behind it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from slim.broker.admin import messages
from slim.broker.cli.connections import fetch
from slim.broker.cli.filtering import FilterCommand, compile_connections
from slim.broker.cli.listing import form_options, print_listing, repeat, watch_options
from slim.broker.cli.tables import Column, age

if TYPE_CHECKING:
    from pathlib import Path

COLUMNS: list[Column[messages.Connection]] = [
    Column("WORKLOAD", lambda row: row.workload),
    Column("PROCESS", lambda row: row.process, from_width=60),
    Column("OVERLAY", lambda row: row.overlay_local),
    Column("HOST", lambda row: row.host_local),
    Column("AGE", lambda row: age(row.age_s), from_width=60, right=True),
]


@click.command(cls=FilterCommand)
@click.argument("terms", nargs=-1, metavar="[FILTER]...")
@form_options
@watch_options
@click.pass_obj
def listeners(
    run_dir: Path, terms: tuple[str, ...], form: str, as_json: bool, watch: bool, every: float
) -> None:
    """List the listeners of every container on this host.

    FILTER is that of slimctl connections: workload:web* dst:10.1.0.0/16 port:80 word /regex/
    """
    matches = compile_connections(run_dir, terms)
    form = "json" if as_json else form

    def show() -> None:
        answer = [row for row in fetch(run_dir) if row.direction == "listen"]
        rows = sorted(filter(matches, answer), key=lambda row: (row.workload, row.overlay_local))
        empty = f"none of {len(answer)} matches" if answer else "no listeners"
        print_listing(rows, messages.Connection, COLUMNS, form, "listeners", empty)

    repeat(show, watch=watch, every=every, form=form)
