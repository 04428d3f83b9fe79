"""`slimctl plugins`: what slimd has loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from slim.broker.admin import client, messages
from slim.broker.cli.tables import Column, print_json, print_table

if TYPE_CHECKING:
    from pathlib import Path

_COLUMNS: list[Column[messages.Plugin]] = [
    Column("PLUGIN", lambda row: row.name),
    Column("VERSION", lambda row: row.version),
    Column("HOOKS", lambda row: " ".join(row.hooks)),
]


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON (docs/slimctl.md).")
@click.pass_obj
def plugins(run_dir: Path, as_json: bool) -> None:
    """List loaded plugins, their versions and the hooks they implement."""
    rows = client.ask(run_dir, messages.GetPlugins(), messages.Plugins).plugins
    if as_json:
        print_json("plugins", rows)
    else:
        print_table(rows, _COLUMNS, empty="no plugins")
