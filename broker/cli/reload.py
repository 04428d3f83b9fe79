"""`slimctl reload`: puts the configuration file in force, as SIGHUP does, and says the result."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from slim.broker.admin import client, messages
from slim.broker.cli.tables import printable

if TYPE_CHECKING:
    from pathlib import Path

EXIT_MISTAKES = 2


@click.command()
@click.pass_obj
def reload(run_dir: Path) -> None:
    """Read the configuration again; with a mistake in it, everything stays as it is.

    When this is done, connections that the new policy forbids are cut.
    """
    answer = client.ask(run_dir, messages.Reload(), messages.Reloaded)
    for mistake in answer.mistakes:
        click.echo(f"slimctl: {printable(mistake.message)}", err=True)
        if mistake.hint:
            click.echo(f"  hint: {printable(mistake.hint)}", err=True)
    if answer.mistakes:
        click.echo("not reloaded: the running configuration stays in force", err=True)
        raise SystemExit(EXIT_MISTAKES)
    for key in answer.needs_restart:
        click.echo(f"{printable(key)} changed: restart slimd to put it in force")
    click.echo("reloaded")
