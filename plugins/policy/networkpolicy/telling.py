"""How the commands of `slimctl policy` word mistakes, verdicts and what changes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from slim.plugins.policy.networkpolicy.loading import load

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from slim.broker.plugin_api import Verdict
    from slim.plugins.policy.networkpolicy.asking import Answer, Change
    from slim.plugins.policy.networkpolicy.loading import Loaded

EXIT_MISTAKES = 2


def load_all(path: Path) -> Loaded:
    """What can be put in force; tells the mistakes and ends otherwise."""
    loaded = load(path)
    refuse_mistakes(loaded, path)
    return loaded


def refuse_mistakes(loaded: Loaded, path: Path) -> None:
    """With mistakes: tell them, and end."""
    if loaded.mistakes:
        for each in [*loaded.mistakes, *loaded.warnings]:
            click.echo(f"{each}\n  hint: {each.remedy}", err=True)
        click.echo(f"{path}: {len(loaded.mistakes)} mistakes", err=True)
        raise SystemExit(EXIT_MISTAKES)


def tell_changes(changes: Iterable[Change]) -> int:
    """Print each pair whose verdict changes; how many there were."""
    count = 0
    for change in changes:
        count += 1
        first, last = change.first_port, change.last_port
        ports = f"port {first}" if first == last else f"ports {first} to {last}"
        click.echo(f"{change.source} to {change.destination}, {ports}:")
        click.echo(f"  - {describe_both(change.before)}")
        click.echo(f"  + {describe_both(change.after)}")
    return count


def describe(verdict: Verdict | None) -> str:
    if verdict is None:
        return "allow (no policy selects this end)"
    word = "allow" if verdict.allow else "deny"
    return f"{word} (would deny: {verdict.rule})" if verdict.audit else f"{word} ({verdict.rule})"


def describe_both(answer: Answer) -> str:
    word = "allowed" if answer.is_allowed else "denied"
    told = {describe(each) for each in (answer.egress, answer.ingress) if each is not None}
    return f"{word}: {'; '.join(sorted(told))}" if told else f"{word}: no policy selects them"
