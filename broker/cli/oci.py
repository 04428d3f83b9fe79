"""`slimctl oci`: the seccomp profile for containers, and engines configured to use it."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import click

from slim.broker.errors import ConfigError
from slim.broker.oci import install as plans
from slim.broker.oci.profile import add_slim

SOCKET = "oci.sock"
ENGINES = ("podman", "docker")

_metadata = click.option(
    "--metadata",
    default="",
    help="JSON for all containers with the profile: workload, namespace, labels, overlay, "
    "fail_mode (docs/containers.md).",
)
_base = click.option(
    "--base",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The profile to start from. Default: podman's own.",
)
_yes = click.option("--yes", is_flag=True, help="Do not ask.")
_root = click.option(
    "--root",
    type=click.Path(path_type=Path, file_okay=False),
    default="/",
    help="Change the files of the system below this directory.",
)


@click.group()
def oci() -> None:
    """Containers of OCI runtimes: the profile that brings them under Slim, and its installation."""


@oci.command()
@_base
@_metadata
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write to this file instead of the standard output.",
)
@click.pass_obj
def profile(run_dir: Path, base: Path | None, metadata: str, output: Path | None) -> None:
    """Write the seccomp profile: a runtime's own with Slim's calls trapped, nothing loosened.

    For --security-opt seccomp=FILE of podman and docker, or localhostProfile of Kubernetes.
    """
    source = base or plans.find_podman_profile(Path("/"))
    content = add_slim(plans.read(source), str(run_dir / SOCKET), metadata)
    if output is None:
        click.echo(content, nl=False)
        return
    before = plans.read(output) if output.exists() else None
    plans.Change(path=output, before=before, after=content).apply()
    click.echo(f"{output}: {source} with Slim's calls trapped")


@oci.command()
@click.argument("engine", type=click.Choice(ENGINES))
@_base
@_metadata
@_yes
@_root
@click.pass_obj
def install(
    run_dir: Path, engine: str, base: Path | None, metadata: str, yes: bool, root: Path
) -> None:
    """Configure ENGINE to bring its containers under Slim; shows every change and asks.

    podman: all containers from now on. docker: those started with --runtime slim.
    """
    if engine == "podman":
        changes = plans.plan_podman(root, str(run_dir / SOCKET), metadata, base)
    else:
        if base is not None or metadata:
            raise ConfigError(
                "docker's own profile is changed when a container is created",
                hint="leave --base and --metadata out; annotations name a container's identity",
            )
        changes = plans.plan_docker(root, _runtime_program())
    _carry_out(changes, yes=yes)


@oci.command()
@click.argument("engine", type=click.Choice(ENGINES))
@_yes
@_root
def uninstall(engine: str, yes: bool, root: Path) -> None:
    """Take back what `install` did; containers that run keep their filter."""
    plan = plans.unplan_podman if engine == "podman" else plans.unplan_docker
    _carry_out(plan(root), yes=yes)


def _carry_out(changes: list[plans.Change], *, yes: bool) -> None:
    if not changes:
        click.echo("nothing to change")
        return
    for change in changes:
        click.echo(change.describe(), nl=False)
    if not yes:
        click.confirm("Change these files?", abort=True)
    for change in changes:
        change.apply()
    click.echo("done")


def _runtime_program() -> str:
    beside = Path(sys.argv[0]).resolve().parent / "slim-runc"
    found = str(beside) if beside.exists() else shutil.which("slim-runc")
    if found is None:
        raise ConfigError(
            "slim-runc is not installed beside slimctl", hint="install slim-broker again"
        )
    return found
