"""`slimctl completion`: the lines that teach a shell to complete `slimctl`.

The shell calls slimctl itself for the words (click's protocol, in `_SLIMCTL_COMPLETE`), so what is
completed is what this version has; slimd is not asked.
"""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

PROGRAM = "slimctl"
VARIABLE = "_SLIMCTL_COMPLETE"


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print what SHELL needs to complete commands, options and files.

    \b
    bash: slimctl completion bash > /etc/bash_completion.d/slimctl
    zsh:  slimctl completion zsh > /usr/share/zsh/vendor-completions/_slimctl
    fish: slimctl completion fish > /etc/fish/completions/slimctl.fish

    For one session of bash: eval "$(slimctl completion bash)". It needs bash 4.4.
    """
    found = get_completion_class(shell)
    if found is None:
        raise click.UsageError(f"this version of click cannot complete {shell}", context)
    root = context.find_root().command
    # Not source(): it starts a bash to look at its version, also where only the file is written.
    script = found(root, {}, PROGRAM, VARIABLE)
    click.echo((script.source_template % script.source_vars()).strip())
