"""How listings are printed: rich tables for people, one JSON object for scripts.

On a terminal the least important columns go before an address is wrapped. Where the output is no
terminal, every column is there in full width, nothing is cut and rich is not even loaded.
Names and commands come from containers: nothing unprintable of theirs reaches the terminal.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

import click
import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

JSON_VERSION = 1
T = TypeVar("T")

# What terminals obey and JSON lets stand: DEL, the second set of control codes (U+009B alone starts
# an escape sequence), line separators, and what turns the direction of text.
_OBEYED = re.compile("[\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")
_GAP = "  "
_LEAST_CUT = 16
_CUT = "..."


@dataclass(frozen=True, slots=True)
class Column(Generic[T]):
    """One column; shown from a terminal width of `from_width` on.

    Where the rows need more than the terminal has, the columns with the largest `from_width` are
    left out first; those with 0 always stay. `cut`: on a terminal it may be shortened instead.
    """

    title: str
    cell: Callable[[T], str]
    from_width: int = 0
    right: bool = False
    cut: bool = False


def print_json(name: str, value: object) -> None:
    """`{"version": 1, name: value}`, indented."""
    text = msgspec.json.encode({"version": JSON_VERSION, name: value})
    click.echo(_escaped(msgspec.json.format(text, indent=2)))


def print_json_line(value: object) -> None:
    """`value` as one line of JSON."""
    click.echo(_escaped(msgspec.json.encode(value)))


def _escaped(json: bytes) -> str:
    # Such characters stand within strings only: to a JSON reader the text stays the same.
    return _OBEYED.sub(lambda found: f"\\u{ord(found[0]):04x}", json.decode())


def print_table(
    rows: Sequence[T], columns: Sequence[Column[T]], *, empty: str, whole: bool = False
) -> None:
    """Print rows; `empty` says in words that there are none; `whole`: as in a pipe."""
    if not rows:
        click.echo(empty)
        return
    cells = [[printable(column.cell(row)) for column in columns] for row in rows]
    widths = [
        max(len(column.title), *(len(row[index]) for row in cells))
        for index, column in enumerate(columns)
    ]
    if sys.stdout.isatty() and not whole:
        _print_on_terminal(cells, columns, widths)
    else:
        _print_whole(cells, columns, widths)


def _print_whole(
    cells: Sequence[Sequence[str]], columns: Sequence[Column[T]], widths: Sequence[int]
) -> None:
    for row in ([column.title for column in columns], *cells):
        padded = (
            text.rjust(width) if column.right else text.ljust(width)
            for text, column, width in zip(row, columns, widths, strict=True)
        )
        click.echo(_GAP.join(padded).rstrip())


def _print_on_terminal(
    cells: Sequence[Sequence[str]], columns: Sequence[Column[T]], widths: Sequence[int]
) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    shown = choose_columns(columns, widths, console.width)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for index, width in shown.items():
        column = columns[index]
        table.add_column(
            column.title,
            justify="right" if column.right else "left",
            overflow="fold",
            max_width=width if column.cut else None,
        )
    for row in cells:
        # Text, not str: rich would read :ab: inside an IPv6 address as the name of an emoji.
        table.add_row(*(Text(_shorten(row[index], width)) for index, width in shown.items()))
    console.print(table)


def choose_columns(
    columns: Sequence[Column[T]], widths: Sequence[int], terminal: int
) -> dict[int, int]:
    """Which columns to show, by index, and how wide each is."""
    shown = [index for index, column in enumerate(columns) if column.from_width <= terminal]

    def needed(index: int) -> int:
        return min(widths[index], _LEAST_CUT) if columns[index].cut else widths[index]

    def left_over() -> int:
        return terminal - sum(needed(index) for index in shown) - len(_GAP) * (len(shown) - 1)

    while left_over() < 0:
        least = max(shown, key=lambda index: (columns[index].from_width, index))
        if not columns[least].from_width:
            break
        shown.remove(least)
    spare = max(0, left_over())
    chosen = {}
    for index in shown:
        chosen[index] = min(widths[index], needed(index) + spare)
        spare -= chosen[index] - needed(index)
    return chosen


def _shorten(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - len(_CUT)] + _CUT


def printable(text: str) -> str:
    """The text with what a terminal would obey, or could not show, written as escapes."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


def amount(number: float) -> str:
    """In at most five characters: 812, 1.2k, 34.5M, 678G; by powers of 1000."""
    for unit in ("", "k", "M", "G", "T"):
        if number < 999.5 or unit == "T":
            break
        number /= 1000
    return f"{number:.0f}{unit}" if not unit or number >= 99.95 else f"{number:.1f}{unit}"


def microseconds(seconds: float) -> str:
    """11us, 4.2ms, 1.5s."""
    if seconds < 0.9995e-3:
        return f"{seconds * 1e6:.0f}us"
    return f"{seconds * 1e3:.1f}ms" if seconds < 0.99995 else f"{seconds:.1f}s"


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
