"""`slimctl status`: slimd's processes, its peers and its counters."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from slim.broker.admin import client, messages
from slim.broker.cli.listing import repeat, watch_options
from slim.broker.cli.tables import Column, age, print_json, print_table, printable

if TYPE_CHECKING:
    from pathlib import Path

_GUARDS = {
    "portable": "portable (for trusted programs: no security boundary)",
    "kernel": "kernel (BPF programs confine host sockets)",
}

_PEERS: list[Column[messages.PeerStatus]] = [
    Column("PEER", lambda row: row.host or "?"),
    Column("STATE", lambda row: row.state),
    Column("RTT", lambda row: f"{row.rtt_ms:.1f} ms" if row.rtt_ms else "-", right=True),
    Column("RETRY", lambda row: f"{row.retry_in_s:.0f}s" if row.retry_in_s else "-", right=True),
    Column("ENDPOINT", lambda row: row.endpoint or "(dialled by it)", from_width=60),
    Column("ERROR", lambda row: row.error or "-"),
]


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON (docs/slimctl.md).")
@watch_options
@click.pass_obj
def status(run_dir: Path, as_json: bool, watch: bool, every: float) -> None:
    """Show how slimd is doing on this host."""
    form = "json" if as_json else "table"
    repeat(lambda: _show(run_dir, as_json), watch=watch, every=every, form=form)


def _show(run_dir: Path, as_json: bool) -> None:
    answer = client.ask(run_dir, messages.GetStatus(), messages.Status)
    if as_json:
        print_json("status", answer)
        return
    processes = ", ".join(
        f"{process.role} {process.pid or 'not running'}" for process in answer.processes
    )
    lines = [
        ("slimd", f"{answer.version} on host {answer.host}, up {age(answer.uptime_s)}"),
        ("processes", processes),
        ("config", answer.config),
        ("guard", _GUARDS.get(answer.guard, answer.guard)),
        ("addresses", f"{', '.join(answer.host_addresses)}; host ports {answer.host_ports}"),
        *[("overlay", text) for text in answer.overlays],
        (
            "now",
            f"{answer.workloads} workloads, {answer.containers} containers, "
            f"{answer.listeners} listeners, {answer.connections} connections",
        ),
    ]
    for title, text in lines:
        click.echo(f"{title + ':':<11}{printable(text)}")
    if answer.peers:
        click.echo()
        print_table(answer.peers, _PEERS, empty="")
    if answer.counters:
        click.echo("\ncounters:")
        width = max(len(name) for name in answer.counters)
        for name, value in sorted(answer.counters.items()):
            click.echo(f"  {printable(name):<{width}}{value:>12}")
