"""How a listing takes a filter (admin.filters) on the command line."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, TypeVar

import click

from slim.broker.admin import client, messages
from slim.broker.admin.filters import FilterError, Language, Names, connection_language

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

T = TypeVar("T")

_NEGATED = re.compile(r"-(?=[a-z]+:|/)")


class FilterCommand(click.Command):
    """A command whose arguments are a filter; `-key:value` and `-/regex/` are no options."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        # The language's other sign of negation, which click does not take for an option's.
        return super().parse_args(
            ctx,
            [_NEGATED.sub("!", word, count=1) if _NEGATED.match(word) else word for word in args],
        )


def compile_terms(language: Language[T], terms: tuple[str, ...]) -> Callable[[T], bool]:
    """The test that the arguments describe; click.UsageError says where one is wrong, and why."""
    try:
        return language.compile(" ".join(terms))
    except FilterError as error:
        raise click.UsageError(f"{error.message}; {error.hint}") from None


def compile_connections(
    run_dir: Path, terms: tuple[str, ...]
) -> Callable[[messages.Connection], bool]:
    """A mistake is found before slimd is asked for the names of addresses."""
    matches = compile_terms(connection_language(), terms)
    if not terms:
        return matches
    containers = client.ask(run_dir, messages.GetContainers(), messages.Containers).containers
    return compile_terms(connection_language(Names(containers)), terms)
