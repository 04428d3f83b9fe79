"""`slimctl connections`: who talks to whom, by which path, and why not the fast one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from slim.broker.admin import client, messages
from slim.broker.admin.mirror import STILL, Mirror
from slim.broker.cli.filtering import FilterCommand, compile_connections
from slim.broker.cli.listing import form_options, print_listing, repeat, watch_options
from slim.broker.cli.tables import Column, age, amount

if TYPE_CHECKING:
    from pathlib import Path

_PATHS = ("fast", "fallback", "denied")


def _path(row: messages.Connection) -> str:
    return f"{row.path} ({row.reason})" if row.reason else row.path


def _ends(row: messages.Connection) -> str:
    if row.direction == "listen":
        return row.overlay_local
    arrow = "<-" if row.direction == "in" else "->"
    return f"{row.overlay_local or '?'} {arrow} {row.overlay_peer or '?'}"


def _host_end(row: messages.Connection) -> str:
    # What stands for the connection on the wire; a listener has no peer, but a port of the host.
    return row.host_peer or row.host_local or "-"


def _verdict(row: messages.Connection) -> str:
    if row.direction == "listen":
        return "-"
    return f"{row.verdict} {row.rule}" if row.rule else row.verdict


COLUMNS: list[Column[messages.Connection]] = [
    Column("DIR", lambda row: row.direction),
    Column("WORKLOAD", lambda row: row.workload),
    Column("PROCESS", lambda row: row.process, from_width=90),
    Column("OVERLAY", _ends),
    Column("HOST PEER", _host_end, from_width=110),
    Column("PATH", _path),
    Column("VERDICT", _verdict, from_width=100),
    Column("LIMITS", lambda row: row.limits or "-", from_width=160),
    Column(
        "RTT", lambda row: f"{row.rtt_ms:.2f}" if row.rtt_ms else "-", from_width=170, right=True
    ),
    Column("RETR", lambda row: str(row.retransmits), from_width=170, right=True),
    Column("SENT", lambda row: amount(row.bytes_acked), from_width=170, right=True),
    Column("RECEIVED", lambda row: amount(row.bytes_received), from_width=170, right=True),
    Column("STATE", lambda row: row.state or "-", from_width=40),
    Column("AGE", lambda row: age(row.age_s), from_width=60, right=True),
]


@click.command(cls=FilterCommand)
@click.argument("terms", nargs=-1, metavar="[FILTER]...")
@form_options
@watch_options
@click.option(
    "--workload", "workloads", multiple=True, help="Only of this workload; may be repeated."
)
@click.option(
    "--path", "paths", multiple=True, type=click.Choice(_PATHS), help="Only these; may be repeated."
)
@click.option(
    "--all", "listeners", flag_value="all", default="all", help="Both kinds (the default)."
)
@click.option("--listeners", "listeners", flag_value="only", help="Only listeners.")
@click.option("--no-listeners", "listeners", flag_value="none", help="Only connections.")
@click.pass_obj
def connections(
    run_dir: Path,
    terms: tuple[str, ...],
    form: str,
    as_json: bool,
    watch: bool,
    every: float,
    workloads: tuple[str, ...],
    paths: tuple[str, ...],
    listeners: str,
) -> None:
    """List connections and listeners of every container on this host.

    Refused attempts stay in the list for a minute. FILTER (docs/slimctl.md): src:web dst:db*
    port:5432 path:fallback -state:close-wait word /regex/
    """
    matches = compile_connections(run_dir, terms)
    form = "json" if as_json else form
    mirror = Mirror()
    columns = [*COLUMNS, *_rate_columns(mirror)] if watch else COLUMNS

    def show() -> None:
        answer = _follow(run_dir, mirror) if watch else fetch(run_dir)
        rows = [
            row
            for row in answer
            if (not workloads or row.workload in workloads)
            and (not paths or row.path in paths)
            and (listeners == "all" or (row.direction == "listen") == (listeners == "only"))
            and matches(row)
        ]
        rows.sort(key=lambda row: (row.workload, row.direction != "listen", -row.age_s))
        empty = f"none of {len(answer)} matches" if answer else "no connections"
        print_listing(rows, messages.Connection, columns, form, "connections", empty)

    repeat(show, watch=watch, every=every, form=form)


def fetch(run_dir: Path) -> list[messages.Connection]:
    """Connections and listeners."""
    return client.ask(run_dir, messages.GetConnections(), messages.Connections).connections


def _follow(run_dir: Path, mirror: Mirror) -> list[messages.Connection]:
    mirror.update(client.ask(run_dir, mirror.request(), messages.Changes))
    return [mirror.whole(cookie) for cookie in mirror.rows]


def _rate_columns(mirror: Mirror) -> list[Column[messages.Connection]]:
    def rate(row: messages.Connection, direction: str) -> str:
        return amount(getattr(mirror.rates.get(row.cookie, STILL), direction))

    return [
        Column("SEND/S", lambda row: rate(row, "send"), from_width=120, right=True),
        Column("RECV/S", lambda row: rate(row, "receive"), from_width=120, right=True),
    ]
