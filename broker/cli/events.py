"""`slimctl events`: what happened, and with --follow what happens."""

from __future__ import annotations

import csv
import sys
from datetime import datetime
from typing import TYPE_CHECKING

import click
import msgspec

from slim.broker.admin import client, messages
from slim.broker.admin.event_filters import event_language
from slim.broker.cli.filtering import FilterCommand, compile_terms
from slim.broker.cli.listing import csv_cell, ends_quietly, form_options
from slim.broker.cli.tables import Column, print_json, print_json_line, print_table, printable
from slim.broker.events import KINDS, Event, EventsLost, describe, kind_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

FIELDS = ("event", *dict.fromkeys(f for kind in KINDS.values() for f in kind.__struct_fields__))
"""Every field of every kind: the columns of CSV."""
_KIND_WIDTH = max(map(len, KINDS))


def _clock(event: Event) -> str:
    return f"{datetime.fromtimestamp(event.time):%H:%M:%S.%f}"[:-3]


COLUMNS: list[Column[Event]] = [
    Column("TIME", _clock),
    Column("EVENT", kind_of),
    Column("WHAT", describe),
]


@click.command(cls=FilterCommand)
@click.argument("terms", nargs=-1, metavar="[FILTER]...")
@form_options
@click.option("--follow", "-f", is_flag=True, help="Go on with what happens, until interrupted.")
@click.option("--last", type=click.IntRange(0), help="Only so many of the past.  [default: all]")
@click.pass_obj
def events(
    run_dir: Path,
    terms: tuple[str, ...],
    form: str,
    as_json: bool,
    follow: bool,
    last: int | None,
) -> None:
    """Tell what happened on this host: the last few thousand events, oldest first.

    FILTER (docs/slimctl.md): event:connection-* workload:web* path:denied peer:b word /regex/
    """
    form = "json" if as_json else form
    if follow and form == "json":
        raise click.UsageError("one JSON object has an end: --follow goes with -o jsonl")
    matches = compile_terms(event_language(), terms)
    past, number = fetch_past(run_dir)
    rows = [event for event in past if matches(event)]
    rows = rows[len(rows) - last :] if last is not None and last < len(rows) else rows
    if not follow:
        _print(rows, form, f"none of {len(past)} matches" if past else "no events")
        return
    _print_more(rows, form, head=True)
    with ends_quietly():
        for news, _ in follow_events(run_dir, number):
            _print_more([event for event in news if matches(event)], form)


def fetch_past(run_dir: Path) -> tuple[list[Event], int]:
    """Every event that slimd still has, and the number of the last."""
    found: list[Event] = []
    number = 0
    while True:
        asked = messages.GetEvents(number)
        answer = client.ask(run_dir, asked, messages.Events)
        if number and answer.lost:
            found.append(EventsLost(count=answer.lost))
        found += answer.events
        number = answer.last
        if len(answer.events) < asked.limit:
            return found, number


def follow_events(run_dir: Path, number: int) -> Iterator[tuple[Sequence[Event], int]]:
    """What happens behind that event, batch by batch, and the number of the last of each.

    What was missed is among it, counted.
    """
    while True:
        asked = messages.GetEvents(number, wait_s=messages.MAX_WAIT_S)
        answer = client.ask(run_dir, asked, messages.Events)
        lost = [EventsLost(count=answer.lost)] if answer.lost else []
        number = answer.last
        yield [*lost, *answer.events], number


def _print(rows: Sequence[Event], form: str, empty: str) -> None:
    if form == "json":
        print_json("events", rows)
    elif form in ("jsonl", "csv"):
        _print_more(rows, form, head=True)
    else:
        print_table(rows, COLUMNS, empty=empty, whole=form == "wide")


def _print_more(rows: Sequence[Event], form: str, *, head: bool = False) -> None:
    """Line by line, as long as lines come: nothing here needs to know the rows to come."""
    if form == "csv":
        writer = csv.writer(sys.stdout, lineterminator="\n")
        if head:
            writer.writerow(FIELDS)
        for event in rows:
            fields = msgspec.to_builtins(event)
            writer.writerow(csv_cell(fields.get(field, "")) for field in FIELDS)
    for event in rows if form != "csv" else ():
        if form == "jsonl":
            print_json_line(event)
        else:
            kind = kind_of(event)
            click.echo(f"{_clock(event)}  {kind:<{_KIND_WIDTH}}  {printable(describe(event))}")
    sys.stdout.flush()
