"""`slimctl policy` apply, remove and show: the directory of documents that the slimd here has.

A file is changed only if all of the directory is without a mistake then, and stays changed only if
slimd takes it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from slim.broker.command_api import RunningSlimd, printable
from slim.broker.plugin_api import ConfigError, Direction, Identity
from slim.plugins.policy.networkpolicy.asking import (
    ListedContainer,
    Questions,
    ends_of,
    find_changes,
)
from slim.plugins.policy.networkpolicy.compiler import compile_resources
from slim.plugins.policy.networkpolicy.directory import Change, PolicyDirectory, path_in
from slim.plugins.policy.networkpolicy.identities import Members
from slim.plugins.policy.networkpolicy.loading import MAX_FILE_BYTES
from slim.plugins.policy.networkpolicy.matching import MemberIndex
from slim.plugins.policy.networkpolicy.model import ClusterPolicy, Mode, Namespace, PodPeer
from slim.plugins.policy.networkpolicy.telling import load_all, refuse_mistakes, tell_changes

if TYPE_CHECKING:
    from slim.plugins.policy.networkpolicy.loading import Loaded
    from slim.plugins.policy.networkpolicy.model import Policy

YES = click.option("--yes", "-y", is_flag=True, help="Do not ask.")
DRY_RUN = click.option("--dry-run", is_flag=True, help="Say what would change, and end.")


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, allow_dash=True))
@click.option("--name", help="The file's name in the directory; FILE's own if not given.")
@DRY_RUN
@YES
@click.pass_obj
def apply(run_dir: Path, file: str, name: str | None, dry_run: bool, yes: bool) -> None:
    """Put a file of documents in force on this host, in place of the one of its name.

    FILE, or - for standard input, is copied into the directory of [plugins.networkpolicy]. First
    shows which workloads of this host get other verdicts about each other.
    """
    if name is None:
        if file == "-":
            raise click.UsageError("standard input has no name: give one with --name")
        name = Path(file).name
    slimd = RunningSlimd(run_dir)
    directory = PolicyDirectory.of(slimd.settings())
    with click.open_file(file, "rb") as stream:
        raw = stream.read(MAX_FILE_BYTES + 1)
    if len(raw) > MAX_FILE_BYTES:
        raise ConfigError(f"{file} is larger than {MAX_FILE_BYTES >> 20} MiB", hint="split it")
    _change(slimd, directory, Change(directory.file(name), raw), dry_run=dry_run, yes=yes)


@click.command()
@click.argument("name")
@DRY_RUN
@YES
@click.pass_obj
def remove(run_dir: Path, name: str, dry_run: bool, yes: bool) -> None:
    """Take a file of documents out of force on this host.

    NAME is the file's in the directory of [plugins.networkpolicy] (slimctl policy list).
    """
    slimd = RunningSlimd(run_dir)
    directory = PolicyDirectory.of(slimd.settings())
    file = directory.file(name)
    if directory.read(file) is None:
        raise ConfigError(
            f"{directory.path} has no {name}", hint="slimctl policy list says which files there are"
        )
    _change(slimd, directory, Change(file, None), dry_run=dry_run, yes=yes)


@click.command()
@click.argument("name")
@click.pass_obj
def show(run_dir: Path, name: str) -> None:
    """Show a policy in force: what it isolates, which workloads of this host, its text.

    NAME is NAMESPACE/NAME of a NetworkPolicy, or the name of a ClusterNetworkPolicy.
    """
    slimd = RunningSlimd(run_dir)
    loaded = load_all(path_in(slimd.settings()))
    found = [
        each for each in loaded.resources if not isinstance(each, Namespace) and each.title == name
    ]
    if not found:
        raise ConfigError(f"no policy {name} is in force", hint="slimctl policy list lists them")
    for policy in found:
        _show(policy, loaded, slimd)


def _show(policy: Policy, loaded: Loaded, slimd: RunningSlimd) -> None:
    kind = "ClusterNetworkPolicy" if isinstance(policy, ClusterPolicy) else "NetworkPolicy"
    mode = ", audit only" if policy.mode is Mode.AUDIT else ""
    click.echo(f"{kind} {policy.title}{mode} ({policy.origin.file}:{policy.origin.line})")
    for direction in Direction:
        rules = policy.rules_for(direction)
        if rules is not None:
            click.echo(f"  {direction}: {len(rules)} rules")
    names = ", ".join(_selected(policy, loaded, slimd))
    click.echo(f"  selects here: {names or 'no workload'}")
    click.echo()
    click.echo(_text_of(policy, loaded))


def _selected(policy: Policy, loaded: Loaded, slimd: RunningSlimd) -> list[str]:
    if isinstance(policy, ClusterPolicy):
        subject = policy.subject
    else:
        subject = PodPeer(policy.namespace, policy.pods)
    index = MemberIndex({0: subject})
    members = Members(compile_resources(loaded.resources).enforced)
    found = set()
    for each in slimd.containers():
        member = members.of(Identity(each.workload, each.namespace, each.labels))
        if member is not None and index.matching(member):
            found.add(printable(f"{each.namespace}/{each.workload}"))
    return sorted(found)


def _text_of(policy: Policy, loaded: Loaded) -> str:
    """Its lines in its file, up to the next document."""
    lines = Path(policy.origin.file).read_text().splitlines()[policy.origin.line - 1 :]
    following = [
        each.origin.line - policy.origin.line
        for each in loaded.resources
        if each.origin.file == policy.origin.file and each.origin.line > policy.origin.line
    ]
    lines = lines[: min(following, default=len(lines))]
    end = next((at for at, line in enumerate(lines) if line.startswith("---")), len(lines))
    return "\n".join(map(printable, lines[:end])).rstrip()


def _change(
    slimd: RunningSlimd, directory: PolicyDirectory, change: Change, *, dry_run: bool, yes: bool
) -> None:
    """Check, show, ask, write, reload; back to what there was if slimd refuses."""
    previous = Change(change.file, directory.read(change.file))
    before = directory.load()
    after = directory.load_with(change, before)
    refuse_mistakes(after, directory.path)
    for each in after.warnings:
        click.echo(f"{each}\n  hint: {each.remedy}")
    _tell(slimd, before, after)
    if dry_run:
        return
    if not yes:
        what = "Put in force" if change.content is not None else "Take out of force"
        click.confirm(f"{what} {change.file}?", abort=True, err=True)
    directory.write(change)
    try:
        slimd.reload()
    except BaseException as error:
        # Interrupted, too: what nobody is told to be in force must not stay there.
        directory.write(previous)
        if not isinstance(error, ConfigError):
            click.echo(
                f"{change.file} is as it was; slimd may have read it meanwhile: say slimctl reload",
                err=True,
            )
        raise
    done = "is in force" if change.content is not None else "is out of force"
    click.echo(f"{change.file} {done}")


def _listed(slimd: RunningSlimd) -> list[ListedContainer]:
    return [
        ListedContainer(each.workload, each.namespace, each.labels, each.addresses)
        for each in slimd.containers()
    ]


def _tell(slimd: RunningSlimd, before: Loaded, after: Loaded) -> None:
    if before.mistakes:
        click.echo("the directory has mistakes as it is, so what changes cannot be told", err=True)
        return
    ends = ends_of(_listed(slimd))
    old, new = (Questions(compile_resources(each.resources)) for each in (before, after))
    changes = find_changes(old, new, ends, [*before.resources, *after.resources])
    if not tell_changes(changes):
        click.echo(f"the verdicts of {len(ends)} workloads here about each other stay the same")
