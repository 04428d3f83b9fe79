"""`slimctl ps`: the containers of this host."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

import click

from slim.broker.admin import client, messages
from slim.broker.admin.filters import container_language
from slim.broker.cli.filtering import FilterCommand, compile_terms
from slim.broker.cli.listing import form_options, print_listing, repeat, watch_options
from slim.broker.cli.tables import Column, age

if TYPE_CHECKING:
    from pathlib import Path

_ID_LENGTH = 12

_COLUMNS: list[Column[messages.Container]] = [
    Column("CONTAINER", lambda row: row.container[:_ID_LENGTH]),
    Column("WORKLOAD", lambda row: row.workload),
    Column("NAMESPACE", lambda row: row.namespace, from_width=90),
    Column("ADDRESSES", lambda row: " ".join(row.addresses)),
    Column("PID", lambda row: str(row.pid), right=True),
    Column("COMMAND", lambda row: shlex.join(row.command), from_width=60, cut=True),
    Column("AGE", lambda row: age(row.age_s), from_width=40, right=True),
    Column("CONN", lambda row: str(row.connections), from_width=80, right=True),
    Column("LISTEN", lambda row: str(row.listeners), from_width=80, right=True),
    Column("ISOLATED", lambda row: ",".join(row.isolated) or "-", from_width=100),
    Column("LABELS", lambda row: _labels(row), from_width=120, cut=True),
]


def _labels(row: messages.Container) -> str:
    return ",".join(f"{key}={value}" for key, value in sorted(row.labels.items())) or "-"


@click.command(cls=FilterCommand)
@click.argument("terms", nargs=-1, metavar="[FILTER]...")
@form_options
@watch_options
@click.pass_obj
def ps(
    run_dir: Path, terms: tuple[str, ...], form: str, as_json: bool, watch: bool, every: float
) -> None:
    """List containers: what runs under Slim on this host.

    CONN and LISTEN count for the whole workload of the container. FILTER
    (docs/slimctl.md): workload:web* label:app=shop address:10.1.0.0/16 -isolated:ingress word
    """
    matches = compile_terms(container_language(), terms)
    form = "json" if as_json else form

    def show() -> None:
        answer = client.ask(run_dir, messages.GetContainers(), messages.Containers).containers
        rows = [row for row in answer if matches(row)]
        empty = f"none of {len(answer)} matches" if answer else "no containers"
        print_listing(rows, messages.Container, _COLUMNS, form, "containers", empty)

    repeat(show, watch=watch, every=every, form=form)
