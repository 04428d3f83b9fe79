"""`slimctl policy`. Loaded by slimctl when it is used."""

from __future__ import annotations

import click

from slim.plugins.policy.networkpolicy.commands import diff, lint, list_policies, test
from slim.plugins.policy.networkpolicy.commands_in_force import apply, remove, show


@click.group()
def policy() -> None:
    """Check NetworkPolicy documents, ask what they mean, put them in force."""


for command in (apply, diff, lint, list_policies, remove, show, test):
    policy.add_command(command)
