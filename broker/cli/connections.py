"""`slimctl connections`: who talks to whom, by which path, and why not the fast one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from slim.broker.admin import client, messages
from slim.broker.cli.tables import Column, age, print_json, print_table

if TYPE_CHECKING:
    from pathlib import Path


def _path(row: messages.Connection) -> str:
    return f"{row.path} ({row.reason})" if row.reason else row.path


def _ends(row: messages.Connection) -> str:
    if row.direction == "listen":
        return row.overlay_local
    arrow = "<-" if row.direction == "in" else "->"
    return f"{row.overlay_local or '?'} {arrow} {row.overlay_peer or '?'}"


_COLUMNS: list[Column[messages.Connection]] = [
    Column("DIR", lambda row: row.direction),
    Column("WORKLOAD", lambda row: row.workload),
    Column("OVERLAY", _ends),
    Column("PATH", _path),
    Column("STATE", lambda row: row.state, from_width=80),
    Column("AGE", lambda row: age(row.age_s), from_width=80, right=True),
    Column("HOST PEER", lambda row: row.host_peer or row.host_local, from_width=110),
    Column("VERDICT", lambda row: row.verdict, from_width=130),
    Column("RULE", lambda row: row.rule, from_width=130),
    Column("PROCESS", lambda row: row.process, from_width=150),
]


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON (docs/slimctl.md).")
@click.option("--workload", help="Only those of this workload.")
@click.option("--path", type=click.Choice(["fast", "fallback", "denied"]), help="Only this path.")
@click.option("--no-listeners", is_flag=True, help="Leave listeners out.")
@click.pass_obj
def connections(
    run_dir: Path, as_json: bool, workload: str | None, path: str | None, no_listeners: bool
) -> None:
    """List connections and listeners of every container on this host."""
    rows = [
        row
        for row in client.ask(run_dir, messages.GetConnections(), messages.Connections).connections
        if (workload is None or row.workload == workload)
        and (path is None or row.path == path)
        and not (no_listeners and row.direction == "listen")
    ]
    if as_json:
        print_json("connections", rows)
    else:
        print_table(rows, _COLUMNS, empty="no connections")
