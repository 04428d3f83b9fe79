"""`slimctl ps`: the containers of this host."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

import click

from slim.broker.admin import client, messages
from slim.broker.cli.tables import Column, age, print_json, print_table

if TYPE_CHECKING:
    from pathlib import Path

_ID_LENGTH = 12

_COLUMNS: list[Column[messages.Container]] = [
    Column("CONTAINER", lambda row: row.container[:_ID_LENGTH]),
    Column("WORKLOAD", lambda row: row.workload),
    Column("NAMESPACE", lambda row: row.namespace, from_width=90),
    Column("ADDRESSES", lambda row: " ".join(row.addresses)),
    Column("PID", lambda row: str(row.pid), right=True),
    Column("COMMAND", lambda row: shlex.join(row.command), from_width=60, cut=True),
    Column("AGE", lambda row: age(row.age_s), from_width=40, right=True),
    Column("CONN", lambda row: str(row.connections), from_width=80, right=True),
    Column("LISTEN", lambda row: str(row.listeners), from_width=80, right=True),
    Column("ISOLATED", lambda row: ",".join(row.isolated) or "-", from_width=100),
    Column("LABELS", lambda row: _labels(row), from_width=120, cut=True),
]


def _labels(row: messages.Container) -> str:
    return ",".join(f"{key}={value}" for key, value in sorted(row.labels.items())) or "-"


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON (docs/slimctl.md).")
@click.pass_obj
def ps(run_dir: Path, as_json: bool) -> None:
    """List containers: what runs under Slim on this host.

    CONN and LISTEN count for the whole workload of the container.
    """
    rows = client.ask(run_dir, messages.GetContainers(), messages.Containers).containers
    if as_json:
        print_json("containers", rows)
    else:
        print_table(rows, _COLUMNS, empty="no containers")
