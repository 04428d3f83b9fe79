"""`slimctl explain`: would a connection be brokered, which rule decides, and why not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from slim.broker.admin import client, messages
from slim.broker.cli.tables import print_json, printable

if TYPE_CHECKING:
    from pathlib import Path

EXIT_DENIED = 1
_PATHS = {
    "fast": "brokered",
    "fallback": "not brokered: over the overlay",
    "denied": "denied",
}


@click.command()
@click.argument("source")
@click.argument("destination")
@click.argument("port", type=click.IntRange(1, 65535))
@click.option("--json", "as_json", is_flag=True, help="Print JSON (docs/slimctl.md).")
@click.pass_obj
def explain(run_dir: Path, source: str, destination: str, port: int, as_json: bool) -> None:
    """Say what would become of a connection, step by step. Exit status 1: denied.

    SOURCE is a workload of this host, by name, NAMESPACE/NAME or overlay address; DESTINATION the
    same, or any address.
    """
    answer = client.ask(run_dir, messages.Explain(source, destination, port), messages.Explanation)
    if as_json:
        print_json("explanation", answer)
    else:
        for step in answer.steps:
            click.echo(f"{step.host}: {step.what + ':':<12} {printable(step.outcome)}")
        rule = f" ({printable(answer.rule)})" if answer.rule else ""
        reason = "" if answer.path == "denied" else f", {printable(answer.reason)}"
        click.echo(f"{_PATHS[answer.path]}{reason}{rule}")
    if answer.path == "denied":
        raise SystemExit(EXIT_DENIED)
