"""What the audience sees: a live table with a progress bar, or plain lines without a terminal."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Self

from bench.report import NOTHING, format_rate
from lab.places import Contender
from rich.console import Group
from rich.live import Live
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from bench.results import Results
    from bench.scenario import Scenario
    from lab.proof import Proof
    from lab.slimd import ConnectionRow
    from rich.console import Console, RenderableType

SHOWN_ROWS = 4
"""Of what slimctl lists, per host."""


class Display:
    """A context manager; `step` after each measurement, `show_proof` when there is one."""

    def __init__(self, console: Console, scenarios: Sequence[Scenario], steps: int) -> None:
        self._console = console
        self._scenarios = scenarios
        self._results: dict[str, Results] = {}
        self._proof: tuple[str, Proof] | None = None
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            expand=True,
            console=console,
        )
        self._task = self._progress.add_task("building the two hosts", total=steps)
        self._live = Live(self._render(), console=console, auto_refresh=False, transient=True)

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._console.is_terminal:
            self._live.stop()

    def add(self, results: Results) -> None:
        """A program's measurements begin."""
        self._results[results.scenario.name] = results

    def announce(self, text: str) -> None:
        self._progress.update(self._task, description=text)
        self._refresh(f"{text} ...")

    def step(self, text: str) -> None:
        """One measurement is done."""
        self._progress.advance(self._task)
        self._refresh(text)

    def show_proof(self, scenario: Scenario, proof: Proof) -> None:
        self._proof = scenario.title, proof
        self._refresh(f"{scenario.title}: {proof}")

    def _refresh(self, text: str) -> None:
        if self._console.is_terminal:
            self._live.update(self._render(), refresh=True)
        else:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _render(self) -> RenderableType:
        parts: list[RenderableType] = [
            self._progress,
            results_table(self._scenarios, self._results),
        ]
        if self._proof is not None:
            title, proof = self._proof
            parts.append(proof_panel(f"{title}: {proof}", proof))
        return Group(*parts)


def results_table(scenarios: Sequence[Scenario], results: dict[str, Results]) -> Table:
    """Medians of the rates, and of the per-round ratios."""
    table = Table(title="operations per second, medians over the rounds")
    table.add_column("program")
    for contender in Contender:
        table.add_column(contender, justify="right")
    for ratio in ("Slim /\nhost", "Slim /\noverlay", "CPU per op.,\nSlim / overlay"):
        table.add_column(ratio, justify="right", no_wrap=True)
    for scenario in scenarios:
        found = results.get(scenario.name)
        table.add_row(
            scenario.name,
            *(_rate(found, contender) for contender in Contender),
            _ratio(found, Contender.HOST),
            _ratio(found, Contender.OVERLAY),
            _cost_ratio(found),
        )
    return table


def proof_panel(title: str, proof: Proof) -> Panel:
    """What `slimctl connections` knew on both hosts; long listings are cut, which it says."""
    tables: list[RenderableType] = []
    for host, rows in proof.rows.items():
        table = Table(box=None, pad_edge=False, show_edge=False)
        for heading in (f"slimctl connections, host {host}", "path", "state", "host peer"):
            table.add_column(heading, overflow="fold")
        # Text, not str: rich would read :ab: inside an IPv6 address as the name of an emoji.
        for row in rows[:SHOWN_ROWS]:
            path = f"{row.path} ({row.reason})" if row.reason else row.path
            table.add_row(*map(Text, (_ends(row), path, row.state, row.host_peer)))
        tables.append(table)
        if len(rows) > SHOWN_ROWS:
            tables.append(Text(f"... and {len(rows) - SHOWN_ROWS} more", style="dim"))
    return Panel(Group(*tables), title=Text(title))


def _ends(row: ConnectionRow) -> str:
    if row.direction == "listen":
        return f"{row.overlay_local} listens"
    arrow = "<-" if row.direction == "in" else "->"
    return f"{row.overlay_local} {arrow} {row.overlay_peer}"


def _rate(results: Results | None, contender: Contender) -> str:
    rates = results.rates(contender) if results else []
    return format_rate(statistics.median(rates)) if rates else NOTHING


def _ratio(results: Results | None, against: Contender) -> str:
    ratio = results.rate_ratio(Contender.SLIM, against) if results else None
    return f"{ratio.median:.2f}" if ratio else NOTHING


def _cost_ratio(results: Results | None) -> str:
    ratio = results.process_cost_ratio(Contender.SLIM, Contender.OVERLAY) if results else None
    return f"{ratio.median:.2f}" if ratio else NOTHING
