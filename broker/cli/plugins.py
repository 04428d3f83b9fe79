"""`slimctl plugins`: what slimd has loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from slim.broker.admin import client, messages
from slim.broker.cli.listing import form_options, print_listing, repeat, watch_options
from slim.broker.cli.tables import Column

if TYPE_CHECKING:
    from pathlib import Path

_COLUMNS: list[Column[messages.Plugin]] = [
    Column("PLUGIN", lambda row: row.name),
    Column("VERSION", lambda row: row.version),
    Column("HOOKS", lambda row: " ".join(row.hooks)),
]


@click.command()
@form_options
@watch_options
@click.pass_obj
def plugins(run_dir: Path, form: str, as_json: bool, watch: bool, every: float) -> None:
    """List loaded plugins, their versions and the hooks they implement."""
    form = "json" if as_json else form

    def show() -> None:
        rows = client.ask(run_dir, messages.GetPlugins(), messages.Plugins).plugins
        print_listing(rows, messages.Plugin, _COLUMNS, form, "plugins", "no plugins")

    repeat(show, watch=watch, every=every, form=form)
