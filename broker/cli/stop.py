"""`slimctl stop`: ends slimd, and with --release everything it left."""

from __future__ import annotations

import time
from pathlib import Path

import click

from slim.broker.admin import client, messages
from slim.broker.errors import ControlError

LIMIT_S = 5.0


@click.command()
@click.option(
    "--release",
    is_flag=True,
    help="For good: containers that still run use the overlay, and the keeper ends with the last.",
)
@click.pass_obj
def stop(run_dir: Path, release: bool) -> None:
    """End slimd on this host. Established connections stay; later calls wait for the next slimd."""
    answer = client.ask(run_dir, messages.Stop(release=release), messages.Stopping)
    deadline = time.monotonic() + LIMIT_S
    while _runs(answer.pid):
        if time.monotonic() > deadline:
            raise ControlError(
                f"slimd (pid {answer.pid}) still runs after {LIMIT_S:.0f} s",
                hint=f"its log says why; kill -TERM {answer.pid} ends it at once",
            )
        time.sleep(0.02)
    click.echo(f"slimd (pid {answer.pid}) ended{' and released its keeper' if release else ''}")


def _runs(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return False
    # The state follows the name, which may hold anything. A zombie has ended: who started it
    # may collect it when it likes.
    return stat.rpartition(")")[2].split()[0] not in ("Z", "X")
