"""`slimctl plugins`: what slimd has loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from slim.broker.admin import client, messages
from slim.broker.cli.listing import form_options, print_listing, repeat, watch_options
from slim.broker.cli.tables import Column, amount, microseconds

if TYPE_CHECKING:
    from pathlib import Path


def _calls(row: messages.Plugin) -> int:
    return sum(cost.calls for cost in row.costs)


def _errors(row: messages.Plugin) -> int:
    return sum(cost.errors for cost in row.costs)


def _mean(row: messages.Plugin) -> str:
    calls = _calls(row)
    return microseconds(sum(cost.seconds for cost in row.costs) / calls) if calls else "-"


def _slowest(row: messages.Plugin) -> str:
    return microseconds(max(cost.slowest_s for cost in row.costs)) if row.costs else "-"


_COLUMNS: list[Column[messages.Plugin]] = [
    Column("PLUGIN", lambda row: row.name),
    Column("VERSION", lambda row: row.version),
    Column("CALLS", lambda row: amount(_calls(row)), from_width=60, right=True),
    Column("MEAN", _mean, from_width=60, right=True),
    Column("SLOWEST", _slowest, from_width=70, right=True),
    Column(
        "ERRORS",
        lambda row: amount(sum(cost.errors for cost in row.costs)),
        from_width=60,
        right=True,
    ),
    Column("HOOKS", lambda row: " ".join(row.hooks)),
]


@click.command()
@form_options
@watch_options
@click.pass_obj
def plugins(run_dir: Path, form: str, as_json: bool, watch: bool, every: float) -> None:
    """List loaded plugins, their versions and hooks, and what their hooks cost slimd."""
    form = "json" if as_json else form

    def show() -> None:
        rows = client.ask(run_dir, messages.GetPlugins(), messages.Plugins).plugins
        print_listing(rows, messages.Plugin, _COLUMNS, form, "plugins", "no plugins")

    repeat(show, watch=watch, every=every, form=form)
