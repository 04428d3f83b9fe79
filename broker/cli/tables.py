"""How listings are printed: rich tables for people, one JSON object for scripts.

On a terminal narrower than a column asks for, the column is left out; when the output is no
terminal, every column is printed in full width and nothing is cut.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

import click
import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

JSON_VERSION = 1
T = TypeVar("T")

_PIPE_WIDTH = 400


@dataclass(frozen=True, slots=True)
class Column(Generic[T]):
    """One column; shown from a terminal width of `from_width` on."""

    title: str
    cell: Callable[[T], str]
    from_width: int = 0
    right: bool = False


def print_json(name: str, value: object) -> None:
    """`{"version": 1, name: value}` on one line per top-level element."""
    text = msgspec.json.encode({"version": JSON_VERSION, name: value})
    click.echo(msgspec.json.format(text, indent=2).decode())


def print_table(rows: Sequence[T], columns: Sequence[Column[T]], *, empty: str) -> None:
    """Print rows; `empty` says in words that there are none."""
    from rich.console import Console
    from rich.table import Table

    if not rows:
        click.echo(empty)
        return
    console = Console()
    if not console.is_terminal:
        console = Console(width=_PIPE_WIDTH, no_color=True, highlight=False)
    table = Table(box=None, pad_edge=False, header_style="bold")
    shown = [column for column in columns if column.from_width <= console.width]
    for column in shown:
        table.add_column(column.title, justify="right" if column.right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(column.cell(row) for column in shown))
    console.print(table, markup=False)


def age(seconds: float) -> str:
    """As ps(1) would: 7s, 3m12s, 5h02m, 9d04h."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole // 60 % 60:02}m"
    return f"{whole // 86400}d{whole // 3600 % 24:02}h"
