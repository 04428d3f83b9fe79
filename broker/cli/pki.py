"""`slimctl pki`: the certificates by which slimds know each other."""

from __future__ import annotations

from pathlib import Path

import click

from slim.broker.cli.tables import print_json
from slim.broker.peers import pki as certificates


@click.group()
def pki() -> None:
    """Make and show the certificates of hosts."""


@pki.command()
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False))
@click.option("--name", default="Slim authority", show_default=True, help="Name of the authority.")
@click.option("--days", default=3650, show_default=True, type=click.IntRange(1, 36500))
def init(directory: Path, name: str, days: int) -> None:
    """Make an authority in DIRECTORY; its key stays there and goes to no host."""
    file = certificates.create_authority(directory, name=name, days=days)
    click.echo(f"{file}: copy it to every host ([peers] authority)")


@pki.command()
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False))
@click.argument("host")
@click.option(
    "--network",
    "networks",
    multiple=True,
    required=True,
    help="An overlay network that the host may speak for; may be given several times.",
)
@click.option("--days", default=365, show_default=True, type=click.IntRange(1, 36500))
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Default: DIRECTORY.")
@click.option("--force", is_flag=True, help="Replace a certificate that is there.")
def issue(
    directory: Path,
    host: str,
    networks: tuple[str, ...],
    days: int,
    out: Path | None,
    force: bool,
) -> None:
    """Make a certificate and key for HOST, by the authority in DIRECTORY."""
    certificate, key = certificates.issue_certificate(
        directory, host, [*networks], days=days, out=out or directory, force=force
    )
    click.echo(f"{certificate} and {key}: copy them to {host} ([peers] certificate and key)")


@pki.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path, dir_okay=False))
@click.option("--json", "as_json", is_flag=True, help="Print JSON (docs/slimctl.md).")
def show(files: tuple[Path, ...], as_json: bool) -> None:
    """Show what certificates say."""
    described = [each for file in files for each in certificates.describe(file)]
    if as_json:
        print_json("certificates", described)
        return
    for certificate in described:
        for key, value in certificate.items():
            text = ", ".join(value) if isinstance(value, list) else str(value)
            if text:
                click.echo(f"{key + ':':<13}{text}")
        click.echo()
