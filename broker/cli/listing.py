"""The forms that a listing takes: `-o table|wide|json|jsonl|csv`, `--json`, and `--watch`."""

from __future__ import annotations

import contextlib
import csv
import sys
import time
from typing import TYPE_CHECKING, TypeVar

import click
import msgspec

from slim.broker.cli.tables import print_json, print_json_line, print_table, printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Any

    from slim.broker.cli.tables import Column

    F = TypeVar("F", bound=Callable[..., Any])

S = TypeVar("S", bound=msgspec.Struct)

FORMS = ("table", "wide", "json", "jsonl", "csv")
INTERRUPTED = 130


def form_options(command: F) -> F:
    """Adds the parameters `form` and `as_json`."""
    form = click.option(
        "-o", "--output", "form", type=click.Choice(FORMS), default="table", help="The form."
    )
    as_json = click.option("--json", "as_json", is_flag=True, help="As -o json.")
    return form(as_json(command))


def watch_options(command: F) -> F:
    """Adds the parameters `watch` and `every`."""
    watch = click.option("--watch", "-w", is_flag=True, help="Again and again, until interrupted.")
    every = click.option(
        "--every",
        type=click.FloatRange(0.1, 3600),
        default=2.0,
        show_default=True,
        metavar="SECONDS",
        help="How often with --watch.",
    )
    return watch(every(command))


def repeat(show: Callable[[], None], *, watch: bool, every: float, form: str = "table") -> None:
    """Show once, or until interrupted: on a terminal in one place, else one below the other."""
    if not watch:
        show()
        return
    if form == "json":
        raise click.UsageError("one JSON object has an end: --watch goes with -o jsonl")
    with ends_quietly():
        while True:
            # Does nothing where the output is no terminal.
            click.clear()
            show()
            sys.stdout.flush()
            time.sleep(every)


@contextlib.contextmanager
def ends_quietly() -> Iterator[None]:
    """Control-C is how this is meant to end."""
    try:
        yield
    except KeyboardInterrupt:
        raise SystemExit(INTERRUPTED) from None


def print_listing(
    rows: Sequence[S], kind: type[S], columns: Sequence[Column[S]], form: str, name: str, empty: str
) -> None:
    """Print rows in one of FORMS; `empty` says in words that there are none, to people only."""
    match form:
        case "json":
            print_json(name, rows)
        case "jsonl":
            for row in rows:
                print_json_line(row)
        case "csv":
            _print_csv(rows, kind)
        case _:
            print_table(rows, columns, empty=empty, whole=form == "wide")


def _print_csv(rows: Sequence[S], kind: type[S]) -> None:
    fields = kind.__struct_fields__
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(fields)
    for row in rows:
        values = (getattr(row, field) for field in fields)
        writer.writerow(map(csv_cell, values))


def csv_cell(value: object) -> str:
    """A value as text; a list or an object has no form in CSV: it is JSON within its cell."""
    is_plain = not isinstance(value, list | dict)
    return printable(str(value) if is_plain else msgspec.json.encode(value).decode())
