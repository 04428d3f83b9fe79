"""`slimctl policy` lint, list, test and diff: what documents mean, before they are in force.

They change nothing. Counterpart of commands_in_force.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from slim.broker.command_api import RunningSlimd
from slim.broker.plugin_api import Direction
from slim.plugins.policy.networkpolicy.asking import (
    End,
    ListedContainer,
    Questions,
    ends_of,
    find_changes,
    read_end,
)
from slim.plugins.policy.networkpolicy.compiler import compile_resources
from slim.plugins.policy.networkpolicy.directory import path_in
from slim.plugins.policy.networkpolicy.model import ClusterPolicy, Mode, Namespace
from slim.plugins.policy.networkpolicy.telling import (
    EXIT_MISTAKES,
    describe,
    load_all,
    tell_changes,
)

if TYPE_CHECKING:
    from slim.plugins.policy.networkpolicy.model import Policy

EXIT_DIFFERENT = 1
JSON_VERSION = 1

DOCUMENTS = click.Path(exists=True, path_type=Path)


class PolicyRow(msgspec.Struct, frozen=True):
    """One policy, as `list -o json` has it."""

    kind: str
    name: str
    mode: str
    directions: list[str]
    file: str
    line: int


class ContainersFile(msgspec.Struct, frozen=True):
    containers: list[ListedContainer]


class EndType(click.ParamType[End]):
    name = "END"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> End:
        if isinstance(value, End):
            return value
        try:
            return read_end(str(value))
        except ValueError as error:
            self.fail(f"{str(value)!r}: {error}", param, ctx)


END = EndType()


@click.command()
@click.argument("path", type=DOCUMENTS)
def lint(path: Path) -> None:
    """Tell every mistake and warning of a file or directory."""
    loaded = load_all(path)
    for each in loaded.warnings:
        click.echo(f"{each}\n  hint: {each.remedy}")
    policies = sum(not isinstance(each, Namespace) for each in loaded.resources)
    namespaces = len(loaded.resources) - policies
    click.echo(f"{path}: {policies} policies, {namespaces} namespaces, no mistake")


@click.command("list")
@click.argument("path", type=DOCUMENTS, required=False)
@click.option("--json", "as_json", is_flag=True, help="For scripts.")
@click.pass_obj
def list_policies(run_dir: Path, path: Path | None, as_json: bool) -> None:
    """List policies and what each isolates: those in force here, or of a file or directory."""
    loaded = load_all(path or path_in(RunningSlimd(run_dir).settings()))
    rows = [_row(each) for each in loaded.resources if not isinstance(each, Namespace)]
    if as_json:
        text = msgspec.json.encode({"version": JSON_VERSION, "policies": rows})
        click.echo(msgspec.json.format(text, indent=2).decode())
        return
    for row in rows:
        mode = "" if row.mode == Mode.ENFORCE else f", {row.mode} only"
        directions = " and ".join(row.directions) or "nothing"
        click.echo(f"{row.kind} {row.name}: {directions}{mode} ({row.file}:{row.line})")
    if not rows:
        click.echo("no policy")


@click.command()
@click.argument("path", type=DOCUMENTS)
@click.option("--from", "source", type=END, required=True, help="Who connects.")
@click.option("--to", "destination", type=END, required=True, help="To whom.")
@click.option("--port", type=click.IntRange(1, 65535), required=True, help="The TCP port.")
def test(path: Path, source: End, destination: End, port: int) -> None:
    """Say whether a connection would be allowed, and which rule decides at each end.

    An END is NAMESPACE/KEY=VALUE,...@ADDRESS, labels and address optional, or an address alone:
    an endpoint that nobody brokers. Exit status 1: denied.
    """
    answer = Questions(compile_resources(load_all(path).resources)).ask(source, destination, port)
    click.echo(f"egress:  {describe(answer.egress)}")
    click.echo(f"ingress: {describe(answer.ingress)}")
    click.echo("allowed" if answer.is_allowed else "denied")
    if not answer.is_allowed:
        raise SystemExit(EXIT_DIFFERENT)


@click.command()
@click.argument("old", type=DOCUMENTS)
@click.argument("new", type=DOCUMENTS)
@click.option(
    "--containers",
    type=click.Path(exists=True, dir_okay=False, allow_dash=True),
    required=True,
    help="What `slimctl ps --json` printed; - is standard input.",
)
def diff(old: Path, new: Path, containers: str) -> None:
    """Tell which pairs of containers change their verdict, and on which ports.

    Exit status 1: some do.
    """
    with click.open_file(containers, "rb") as file:
        ends = _read_containers(file.read(), "standard input" if containers == "-" else containers)
    loaded = [load_all(path) for path in (old, new)]
    before, after = (Questions(compile_resources(each.resources)) for each in loaded)
    resources = [each for one in loaded for each in one.resources]
    if tell_changes(find_changes(before, after, ends, resources)):
        raise SystemExit(EXIT_DIFFERENT)
    click.echo(f"the verdicts of {len(ends)} containers about each other stay the same")


def _row(each: Policy) -> PolicyRow:
    is_cluster = isinstance(each, ClusterPolicy)
    return PolicyRow(
        kind="ClusterNetworkPolicy" if is_cluster else "NetworkPolicy",
        name=each.title,
        mode=str(each.mode),
        directions=[
            str(direction)
            for direction in Direction
            # An empty list isolates in a NetworkPolicy, and says nothing in the other.
            if (rules := each.rules_for(direction)) is not None and (rules or not is_cluster)
        ],
        file=each.origin.file,
        line=each.origin.line,
    )


def _read_containers(raw: bytes, name: str) -> list[End]:
    """One end for every workload: containers of one are the same to policy."""
    try:
        listed = msgspec.json.decode(raw, type=ContainersFile).containers
        ends = ends_of(listed)
    except (msgspec.DecodeError, ValueError) as error:
        click.echo(f"{name}: not what `slimctl ps --json` prints: {error}", err=True)
        raise SystemExit(EXIT_MISTAKES) from None
    return ends
