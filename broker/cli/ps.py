"""`slimctl ps`: the containers of this host."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from slim.broker.admin import client, messages
from slim.broker.cli.tables import Column, age, print_json, print_table

if TYPE_CHECKING:
    from pathlib import Path

_COLUMNS: list[Column[messages.Container]] = [
    Column("CONTAINER", lambda row: row.container),
    Column("WORKLOAD", lambda row: f"{row.namespace}/{row.workload}"),
    Column("ADDRESSES", lambda row: " ".join(row.addresses)),
    Column("PID", lambda row: str(row.pid), right=True),
    Column("AGE", lambda row: age(row.age_s), right=True),
    Column("COMMAND", lambda row: " ".join(row.command)[:60], from_width=90),
    Column("CONN", lambda row: str(row.connections), from_width=100, right=True),
    Column("LISTEN", lambda row: str(row.listeners), from_width=100, right=True),
    Column("ISOLATED", lambda row: ",".join(row.isolated) or "-", from_width=120),
    Column("LABELS", lambda row: ",".join(f"{k}={v}" for k, v in row.labels.items()), 140),
]


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON (docs/slimctl.md).")
@click.pass_obj
def ps(run_dir: Path, as_json: bool) -> None:
    """List containers: what runs under Slim on this host."""
    rows = client.ask(run_dir, messages.GetContainers(), messages.Containers).containers
    if as_json:
        print_json("containers", rows)
    else:
        print_table(rows, _COLUMNS, empty="no containers")
