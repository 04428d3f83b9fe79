"""`slimctl connections`: who talks to whom, by which path, and why not the fast one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from slim.broker.admin import client, messages
from slim.broker.cli.filtering import FilterCommand, compile_connections
from slim.broker.cli.listing import form_options, print_listing
from slim.broker.cli.tables import Column, age

if TYPE_CHECKING:
    from pathlib import Path

_PATHS = ("fast", "fallback", "denied")


def _path(row: messages.Connection) -> str:
    return f"{row.path} ({row.reason})" if row.reason else row.path


def _ends(row: messages.Connection) -> str:
    if row.direction == "listen":
        return row.overlay_local
    arrow = "<-" if row.direction == "in" else "->"
    return f"{row.overlay_local or '?'} {arrow} {row.overlay_peer or '?'}"


def _host_end(row: messages.Connection) -> str:
    # What stands for the connection on the wire; a listener has no peer, but a port of the host.
    return row.host_peer or row.host_local or "-"


def _verdict(row: messages.Connection) -> str:
    if row.direction == "listen":
        return "-"
    return f"{row.verdict} {row.rule}" if row.rule else row.verdict


COLUMNS: list[Column[messages.Connection]] = [
    Column("DIR", lambda row: row.direction),
    Column("WORKLOAD", lambda row: row.workload),
    Column("PROCESS", lambda row: row.process, from_width=90),
    Column("OVERLAY", _ends),
    Column("HOST PEER", _host_end, from_width=110),
    Column("PATH", _path),
    Column("VERDICT", _verdict, from_width=100),
    Column("LIMITS", lambda row: row.limits or "-", from_width=160),
    Column("STATE", lambda row: row.state or "-", from_width=40),
    Column("AGE", lambda row: age(row.age_s), from_width=60, right=True),
]


@click.command(cls=FilterCommand)
@click.argument("terms", nargs=-1, metavar="[FILTER]...")
@form_options
@click.option(
    "--workload", "workloads", multiple=True, help="Only of this workload; may be repeated."
)
@click.option(
    "--path", "paths", multiple=True, type=click.Choice(_PATHS), help="Only these; may be repeated."
)
@click.option(
    "--all", "listeners", flag_value="all", default="all", help="Both kinds (the default)."
)
@click.option("--listeners", "listeners", flag_value="only", help="Only listeners.")
@click.option("--no-listeners", "listeners", flag_value="none", help="Only connections.")
@click.pass_obj
def connections(
    run_dir: Path,
    terms: tuple[str, ...],
    form: str,
    as_json: bool,
    workloads: tuple[str, ...],
    paths: tuple[str, ...],
    listeners: str,
) -> None:
    """List connections and listeners of every container on this host.

    Refused attempts stay in the list for a minute. FILTER (docs/slimctl.md): src:web dst:db*
    port:5432 path:fallback -state:close-wait word /regex/
    """
    matches = compile_connections(run_dir, terms)
    answer = client.ask(run_dir, messages.GetConnections(), messages.Connections).connections
    rows = [
        row
        for row in answer
        if (not workloads or row.workload in workloads)
        and (not paths or row.path in paths)
        and (listeners == "all" or (row.direction == "listen") == (listeners == "only"))
        and matches(row)
    ]
    rows.sort(key=lambda row: (row.workload, row.direction != "listen", -row.age_s))
    form = "json" if as_json else form
    empty = f"none of {len(answer)} matches" if answer else "no connections"
    print_listing(rows, messages.Connection, COLUMNS, form, "connections", empty)
