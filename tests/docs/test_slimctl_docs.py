"""docs/slimctl.md names every field that scripts may read, every command and every column."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import click
import msgspec
import pytest

from slim.broker.admin import messages
from slim.broker.cli import checks, connections, events, plugins, ps, status
from slim.broker.cli.main import LazyGroup, slimctl
from slim.broker.events import KINDS

TEXT = Path(__file__).parents[2].joinpath("docs", "slimctl.md").read_text()
CODE = {word for words in re.findall(r"`([^`]+)`", TEXT) for word in re.findall(r"[\w-]+", words)}

STRUCTS = (
    messages.Connection,
    messages.Container,
    messages.ExplainStep,
    messages.Explanation,
    messages.PeerStatus,
    messages.Plugin,
    messages.ProcessStatus,
    messages.Status,
)
ANSWERS = (
    messages.Status,
    messages.Containers,
    messages.Connections,
    messages.Explanation,
    messages.Plugins,
)
FIELDS = {
    *(field for struct in STRUCTS for field in struct.__struct_fields__),
    *(field.name for field in fields(checks.Check)),
    *(field for kind in KINDS.values() for field in kind.__struct_fields__),
    *KINDS,
}
COLUMNS = [
    *(column.title for column in ps._COLUMNS),
    *(column.title for column in connections.COLUMNS),
    *(column.title for column in events.COLUMNS),
    *(column.title for column in plugins._COLUMNS),
    *(column.title for column in status._PEERS),
]


@pytest.mark.parametrize("field", sorted(FIELDS))
def test_every_field_of_json_is_documented(field: str) -> None:
    assert field in CODE


@pytest.mark.parametrize("title", sorted(set(COLUMNS)))
def test_every_column_is_documented(title: str) -> None:
    assert re.search(rf"\b{title}\b", TEXT)


def test_every_command_and_its_options_are_documented() -> None:
    assert isinstance(slimctl, LazyGroup)
    context = click.Context(slimctl)
    for name in slimctl.list_commands(context):
        assert name in CODE
        command = slimctl.get_command(context, name)
        assert command is not None
        for parameter in command.params:
            option = max(parameter.opts, key=len)
            if option.startswith("--"):
                assert option in TEXT, f"{name} {option}"


def test_structs_are_all_of_those_that_answers_hold() -> None:
    names = {struct.__name__ for struct in STRUCTS}
    for answer in ANSWERS:
        for field in msgspec.structs.fields(answer):
            for held in re.findall(r"messages\.(\w+)", str(field.type)):
                assert held in names
