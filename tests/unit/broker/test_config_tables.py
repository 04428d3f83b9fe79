"""Every table and every key says what it is for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from slim.broker.config_keys import Key, Table, describe, keys_of
from slim.broker.config_tables import ConfigTables

if TYPE_CHECKING:
    from collections.abc import Iterator


def every_key(table: type[Table], path: str = "") -> Iterator[tuple[str, Key]]:
    for key in keys_of(table).values():
        yield path + key.name, key
        if key.table is not None:
            yield from every_key(key.table, f"{path}{key.name}.")


KEYS = dict(every_key(ConfigTables))


@pytest.mark.parametrize("path", KEYS)
def test_a_key_is_described_in_sentences(path: str) -> None:
    key = KEYS[path]
    text = describe(key.table) if key.table is not None else key.description
    assert text.endswith(".")
    assert "\n" not in text


@pytest.mark.parametrize("path", [path for path, key in KEYS.items() if key.table is None])
def test_a_key_has_an_example(path: str) -> None:
    assert KEYS[path].example not in (None, "")
    assert KEYS[path].line.startswith(f"{KEYS[path].name} = ")


def test_tables_that_repeat_are_known_as_such() -> None:
    assert [path for path, key in KEYS.items() if key.repeated] == [
        "overlay",
        "slim_run.namespace",
        "shaping.rule",
        "shaping.container",
    ]


def test_only_the_guard_the_addresses_and_an_overlay_must_be_written() -> None:
    tops = ("guard", "host", "overlay")
    required = [path for path, key in KEYS.items() if key.required and path.startswith(tops)]
    assert required == [
        "guard",
        "host",
        "host.addresses",
        "overlay",
        "overlay.name",
        "overlay.networks",
    ]
    others = [path for path, key in KEYS.items() if key.required and "." not in path]
    assert others == ["guard", "host", "overlay"]


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("guard", 'guard = "portable"'),
        ("limits.flow_lifetime_s", "flow_lifetime_s = 300"),
        ("discovery.order", 'order = ["static", "rendezvous"]'),
        ("plugins.load", "load = []"),
        ("slim_run.namespace.labels", 'labels = {app = "web", tier = "front"}'),
    ],
)
def test_examples_are_written_as_toml(path: str, line: str) -> None:
    assert KEYS[path].line == line
