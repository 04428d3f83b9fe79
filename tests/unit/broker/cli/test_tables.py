"""Listings: which columns a terminal gets, and that addresses stay as they are."""

from __future__ import annotations

import json

import pytest

from slim.broker.cli.tables import (
    Column,
    age,
    amount,
    choose_columns,
    microseconds,
    print_json,
    print_json_line,
    print_table,
    printable,
)

COLUMNS: list[Column[dict[str, str]]] = [
    Column("A", lambda row: row["a"]),
    Column("B", lambda row: row["b"], from_width=90),
    Column("C", lambda row: row["c"], from_width=50, right=True),
    Column("D", lambda row: row["d"], from_width=50, cut=True),
]


def chosen(widths: list[int], terminal: int) -> dict[str, int]:
    found = choose_columns(COLUMNS, widths, terminal)
    return {COLUMNS[index].title: width for index, width in found.items()}


def test_all_columns_show_where_there_is_room() -> None:
    assert chosen([5, 5, 5, 5], 100) == {"A": 5, "B": 5, "C": 5, "D": 5}


def test_a_column_waits_for_its_width_even_if_it_had_room() -> None:
    assert chosen([5, 5, 5, 5], 89) == {"A": 5, "C": 5, "D": 5}


def test_the_least_important_columns_go_first_when_rows_are_wide() -> None:
    assert chosen([60, 40, 20, 5], 100) == {"A": 60, "C": 20, "D": 5}
    assert chosen([75, 40, 20, 5], 100) == {"A": 75, "C": 20}
    assert chosen([95, 40, 20, 5], 100) == {"A": 95}


def test_what_always_shows_stays_however_narrow_it_is() -> None:
    assert chosen([60, 40, 20, 5], 30) == {"A": 60}


def test_a_column_that_may_be_cut_takes_what_is_left() -> None:
    assert chosen([40, 10, 10, 500], 100) == {"A": 40, "B": 10, "C": 10, "D": 34}


def test_a_pipe_gets_every_column_in_full_width(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"a": "x", "b": "y" * 300, "c": "7", "d": "z" * 300}, dict.fromkeys("abcd", "12")]
    print_table(rows, COLUMNS, empty="")
    title, first, second = capsys.readouterr().out.splitlines()
    assert title.split() == ["A", "B", "C", "D"]
    assert first == f"x   {'y' * 300}   7  {'z' * 300}"
    assert second == f"12  {'12':<300}  12  12"


def test_no_rows_are_said_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    print_table([], COLUMNS, empty="no rows at all")
    assert capsys.readouterr().out == "no rows at all\n"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("10.1.0.2:80", "10.1.0.2:80"),
        ("größe 大", "größe 大"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("two\nlines\r", "two\\nlines\\r"),
        ("\x9b2J", "\\x9b2J"),
        ("\u202eright to left", "\\u202eright to left"),
        ("\udcff", "\\udcff"),
    ],
)
def test_what_a_terminal_would_obey_is_written_as_an_escape(text: str, shown: str) -> None:
    assert printable(text) == shown


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0s"),
        (59.9, "59s"),
        (60, "1m00s"),
        (3599, "59m59s"),
        (3600, "1h00m"),
        (86399, "23h59m"),
        (86400, "1d00h"),
        (10 * 86400 + 7200, "10d02h"),
    ],
)
def test_ages_are_written_as_ps_does(seconds: float, text: str) -> None:
    assert age(seconds) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (999, "999"),
        (999.7, "1.0k"),
        (1234, "1.2k"),
        (99_960, "100k"),
        (999_499, "999k"),
        (34_500_000, "34.5M"),
        (678e9, "678G"),
        (5.6e15, "5600T"),
    ],
)
def test_an_amount_fits_five_characters(number: float, text: str) -> None:
    assert amount(number) == text
    assert len(text) <= 5


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0us"), (11e-6, "11us"), (0.9994e-3, "999us"), (4.2e-3, "4.2ms"), (1.5, "1.5s")],
)
def test_durations_of_calls(seconds: float, text: str) -> None:
    assert microseconds(seconds) == text


@pytest.mark.parametrize("char", ["\x1b", "\x7f", "\x85", "\x9b", "\u202e", "\u2066", "\u2028"])
def test_json_has_nothing_that_a_terminal_obeys_and_reads_back_the_same(
    char: str, capsys: pytest.CaptureFixture[str]
) -> None:
    name = f"web{char}31mé漢"
    print_json("rows", [name])
    whole = capsys.readouterr().out
    print_json_line({"name": name})
    line = capsys.readouterr().out
    assert char not in whole + line
    assert json.loads(whole) == {"version": 1, "rows": [name]}
    assert json.loads(line) == {"name": name}
    assert "é漢" in line
