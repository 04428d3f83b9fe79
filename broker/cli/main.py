"""`slimctl`: the operator's command. One file per subcommand, imported only when it is used."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from slim.broker.errors import SlimError

DEFAULT_RUN_DIR = "/run/slim"

_COMMANDS = {
    "completion": ("slim.broker.cli.completion", "Print what a shell needs to complete slimctl."),
    "connections": ("slim.broker.cli.connections", "List connections and listeners."),
    "cut": ("slim.broker.cli.cut", "End connections, at both ends."),
    "doctor": ("slim.broker.cli.doctor", "Check what this host offers, and say what to do."),
    "events": ("slim.broker.cli.events", "Tell what happened, and what happens."),
    "explain": ("slim.broker.cli.explain", "Say what would become of a connection, and why."),
    "listeners": ("slim.broker.cli.listeners", "List listeners."),
    "metrics": ("slim.broker.cli.metrics", "Print or serve metrics for Prometheus."),
    "oci": ("slim.broker.cli.oci", "Bring containers of podman and docker under Slim."),
    "overlay": ("slim.broker.cli.overlay", "Build and show the built-in VXLAN overlay."),
    "pki": ("slim.broker.cli.pki", "Make and show the certificates of hosts."),
    "plugins": ("slim.broker.cli.plugins", "List loaded plugins."),
    "policy": (
        "slim.plugins.policy.networkpolicy.command_group",
        "Check NetworkPolicy documents, put them in force.",
    ),
    "ps": ("slim.broker.cli.ps", "List containers."),
    "reload": ("slim.broker.cli.reload", "Put the configuration file in force again."),
    "status": ("slim.broker.cli.status", "Show slimd's processes, peers and counters."),
    "stop": ("slim.broker.cli.stop", "End slimd; established connections stay."),
}


class LazyGroup(click.Group):
    """Loads a subcommand's module when it is asked for; help texts come from the table above."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, _ = _COMMANDS[cmd_name]
        command: click.Command = getattr(importlib.import_module(module), cmd_name)
        return command

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """As click's, from the table: a key pressed in a shell loads no command."""
        commands = [
            CompletionItem(name, help=text)
            for name, (_, text) in sorted(_COMMANDS.items())
            if name.startswith(incomplete)
        ]
        return [*commands, *click.Command.shell_complete(self, ctx, incomplete)]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in sorted(_COMMANDS.items())])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="slim-broker", prog_name="slimctl")
@click.option(
    "--run-dir",
    type=click.Path(path_type=Path),
    envvar="SLIM_RUN_DIR",
    default=DEFAULT_RUN_DIR,
    show_default=True,
    show_envvar=True,
    help="Where slimd's sockets are.",
)
@click.pass_context
def slimctl(context: click.Context, run_dir: Path) -> None:
    """Look at and control Slim on this host."""
    context.obj = run_dir


def main(arguments: list[str] | None = None) -> Any:
    """Console script `slimctl`; the one place that turns a SlimError into text."""
    try:
        return slimctl.main(args=arguments, prog_name="slimctl")
    except SlimError as error:
        for mistake in (error, *error.more):
            click.echo(f"slimctl: {mistake.message}", err=True)
            if mistake.hint:
                click.echo(f"  hint: {mistake.hint}", err=True)
        sys.exit(error.exit_code)
    except OSError as error:
        # A file or a call of this command itself; click has dealt with a reader that left.
        click.echo(f"slimctl: {_describe(error)}", err=True)
        sys.exit(1)


def _describe(error: OSError) -> str:
    text = error.strerror or str(error)
    return text if error.filename is None else f"{os.fsdecode(error.filename)}: {text}"


if __name__ == "__main__":
    main()
