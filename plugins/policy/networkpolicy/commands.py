"""`slimctl policy`: reads documents, and says what they mean before they are in force.

Asks no slimd and changes nothing. Loaded by slimctl when it is used.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from slim.broker.plugin_api import Direction, Identity, parse_address
from slim.plugins.policy.networkpolicy.asking import Answer, End, Questions, find_changes, read_end
from slim.plugins.policy.networkpolicy.compiler import compile_resources
from slim.plugins.policy.networkpolicy.loading import load
from slim.plugins.policy.networkpolicy.model import ClusterPolicy, Mode, Namespace

if TYPE_CHECKING:
    from collections.abc import Iterable

    from slim.broker.plugin_api import Verdict
    from slim.plugins.policy.networkpolicy.compiler import Compiled
    from slim.plugins.policy.networkpolicy.loading import Loaded
    from slim.plugins.policy.networkpolicy.model import Policy

EXIT_DIFFERENT = 1
EXIT_MISTAKES = 2
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


class Listed(msgspec.Struct, frozen=True):
    """A container, of what `slimctl ps --json` prints."""

    workload: str
    namespace: str
    labels: dict[str, str]
    addresses: list[str]


class ContainersFile(msgspec.Struct, frozen=True):
    containers: list[Listed]


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


@click.group()
def policy() -> None:
    """Check NetworkPolicy documents, and ask what they mean, before they are in force."""


@policy.command()
@click.argument("path", type=DOCUMENTS)
def lint(path: Path) -> None:
    """Tell every mistake and warning of a file or directory."""
    loaded = _load(path)
    for each in loaded.warnings:
        click.echo(f"{each}\n  hint: {each.remedy}")
    policies = sum(not isinstance(each, Namespace) for each in loaded.resources)
    namespaces = len(loaded.resources) - policies
    click.echo(f"{path}: {policies} policies, {namespaces} namespaces, no mistake")


@policy.command("list")
@click.argument("path", type=DOCUMENTS)
@click.option("--json", "as_json", is_flag=True, help="For scripts.")
def list_policies(path: Path, as_json: bool) -> None:
    """List the policies of a file or directory and what each isolates."""
    loaded = _load(path)
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


@policy.command()
@click.argument("path", type=DOCUMENTS)
@click.option("--from", "source", type=END, required=True, help="Who connects.")
@click.option("--to", "destination", type=END, required=True, help="To whom.")
@click.option("--port", type=click.IntRange(1, 65535), required=True, help="The TCP port.")
def test(path: Path, source: End, destination: End, port: int) -> None:
    """Say whether a connection would be allowed, and which rule decides at each end.

    An END is NAMESPACE/KEY=VALUE,...@ADDRESS, labels and address optional, or an address alone:
    an endpoint that nobody brokers. Exit status 1: denied.
    """
    answer = Questions(_compile(_load(path))).ask(source, destination, port)
    click.echo(f"egress:  {_describe(answer.egress)}")
    click.echo(f"ingress: {_describe(answer.ingress)}")
    click.echo("allowed" if answer.is_allowed else "denied")
    if not answer.is_allowed:
        raise SystemExit(EXIT_DIFFERENT)


@policy.command()
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
    loaded = [_load(path) for path in (old, new)]
    before, after = (Questions(_compile(each)) for each in loaded)
    resources = [each for one in loaded for each in one.resources]
    count = 0
    for change in find_changes(before, after, ends, resources):
        count += 1
        first, last = change.first_port, change.last_port
        ports = f"port {first}" if first == last else f"ports {first} to {last}"
        click.echo(f"{change.source} to {change.destination}, {ports}:")
        click.echo(f"  - {_describe_both(change.before)}")
        click.echo(f"  + {_describe_both(change.after)}")
    if count:
        raise SystemExit(EXIT_DIFFERENT)
    click.echo(f"the verdicts of {len(ends)} containers about each other stay the same")


def _load(path: Path) -> Loaded:
    """What can be put in force; tells the mistakes and ends otherwise."""
    loaded = load(path)
    if loaded.mistakes:
        for each in [*loaded.mistakes, *loaded.warnings]:
            click.echo(f"{each}\n  hint: {each.remedy}", err=True)
        click.echo(f"{path}: {len(loaded.mistakes)} mistakes", err=True)
        raise SystemExit(EXIT_MISTAKES)
    return loaded


def _compile(loaded: Loaded) -> Compiled:
    return compile_resources(loaded.resources)


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


def _describe(verdict: Verdict | None) -> str:
    if verdict is None:
        return "allow (no policy selects this end)"
    word = "allow" if verdict.allow else "deny"
    return f"{word} (would deny: {verdict.rule})" if verdict.audit else f"{word} ({verdict.rule})"


def _describe_both(answer: Answer) -> str:
    word = "allowed" if answer.is_allowed else "denied"
    told = {_describe(each) for each in (answer.egress, answer.ingress) if each is not None}
    return f"{word}: {'; '.join(sorted(told))}" if told else f"{word}: no policy selects them"


def _read_containers(raw: bytes, name: str) -> list[End]:
    """One end for every workload: containers of one are the same to policy."""
    try:
        listed = msgspec.json.decode(raw, type=ContainersFile).containers
        ends = [*_ends(listed)]
    except (msgspec.DecodeError, ValueError) as error:
        click.echo(f"{name}: not what `slimctl ps --json` prints: {error}", err=True)
        raise SystemExit(EXIT_MISTAKES) from None
    return ends


def _ends(listed: Iterable[Listed]) -> Iterable[End]:
    seen: set[tuple[str, str, str]] = set()
    for each in listed:
        for address in each.addresses:
            key = (each.namespace, each.workload, address)
            if key in seen:
                continue
            seen.add(key)
            identity = Identity(each.workload, each.namespace, each.labels)
            name = f"{each.namespace}/{each.workload} {address}"
            yield End(name, identity, parse_address(address))


if __name__ == "__main__":
    sys.exit(policy())
