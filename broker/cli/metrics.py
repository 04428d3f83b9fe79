"""`slimctl metrics`: slimd's metrics for Prometheus, printed once or served."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import click

from slim.broker.cli.events import fetch_past, follow_events
from slim.broker.cli.listing import ends_quietly
from slim.broker.endpoints import Endpoint
from slim.broker.errors import ControlError

if TYPE_CHECKING:
    from pathlib import Path

    from slim.broker.exporter.tally import EventTally

RETRY_S = 2.0


class ListenType(click.ParamType[Endpoint | str]):
    name = "ADDRESS:PORT|PATH"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> Endpoint | str:
        text = str(value).removeprefix("unix:")
        if text.startswith("/"):
            return text
        try:
            return Endpoint.parse(text)
        except ValueError as error:
            self.fail(f"{text!r}: {error}; or a path from / on", param, ctx)


@click.command()
@click.option(
    "--listen",
    "where",
    type=ListenType(),
    help="Serve them there: 127.0.0.1:9469, [::1]:9469 or /run/slim/metrics.sock.",
)
@click.pass_obj
def metrics(run_dir: Path, where: Endpoint | str | None) -> None:
    """Print slimd's metrics once, in the text format of Prometheus, or serve them over HTTP.

    What is counted from events (set-up times, verdicts by rule) is counted while this serves.
    """
    from prometheus_client import CollectorRegistry, generate_latest

    from slim.broker.exporter.serving import open_server
    from slim.broker.exporter.snapshot import Snapshot
    from slim.broker.exporter.tally import EventTally

    registry = CollectorRegistry()
    registry.register(Snapshot(run_dir))
    if where is None:
        click.echo(generate_latest(registry), nl=False)
        return
    tally = EventTally(registry)
    threading.Thread(target=_follow, args=(run_dir, tally), daemon=True).start()
    with ends_quietly(), open_server(where, registry) as server:
        click.echo(f"metrics at {where}")
        server.serve_forever()


def _follow(run_dir: Path, tally: EventTally) -> None:
    """Count what happens, through every restart of slimd."""
    number: int | None = None
    while True:
        try:
            if number is None:
                _, number = fetch_past(run_dir)
            for events, last in follow_events(run_dir, number):
                number = last
                tally.add(events)
        except (ControlError, OSError):
            time.sleep(RETRY_S)
