"""Renders the example configuration from the types of config_tables.py.

    python -m slim.broker.config_example > contrib/examples/slimd.toml

What must be written is written; everything else is there as `#key = default`, so that taking away
each `#` that is followed by no space gives a complete file. A test compares it with this.
"""

from __future__ import annotations

import sys
import textwrap
from typing import TYPE_CHECKING

from slim.broker.config_keys import Key, describe, keys_of
from slim.broker.config_tables import ConfigTables

if TYPE_CHECKING:
    from collections.abc import Iterator

WIDTH = 96

_HEAD = """\
The configuration of slimd, with every key. A "#" that no space follows is before what may be left \
out: its value is the default, or an example where there is none.
"""

_PLUGIN_TABLE = """\

# The settings of one plugin; what may be there is the plugin's to say.
#[plugins.static]
"""


def render_example() -> str:
    """The text of the example file."""
    lines = [*_comment(_HEAD), ""]
    keys = keys_of(ConfigTables).values()
    for key in keys:
        if key.table is None:
            lines += [*_key(key, optional=not key.required), ""]
    for key in keys:
        if key.table is not None:
            lines += _table(key, key.name, optional=not key.required)
    return "\n".join(lines).rstrip() + "\n" + _PLUGIN_TABLE


def _table(key: Key, dotted: str, *, optional: bool) -> Iterator[str]:
    assert key.table is not None
    keys = keys_of(key.table).values()
    # A table that may be empty stays, so that a key of it can be written by taking away one "#".
    mark = "#" if optional and any(inner.required for inner in keys) else ""
    yield from _comment(describe(key.table))
    yield f"{mark}[[{dotted}]]" if key.repeated else f"{mark}[{dotted}]"
    for inner in keys:
        if inner.table is None:
            yield from _key(inner, optional=optional or not inner.required)
    yield ""
    for inner in keys:
        if inner.table is not None:
            yield from _table(inner, f"{dotted}.{inner.name}", optional=True)


def _key(key: Key, *, optional: bool) -> Iterator[str]:
    yield from _comment(key.description)
    yield f"#{key.line}" if optional else key.line


def _comment(text: str) -> list[str]:
    return textwrap.wrap(
        text, WIDTH, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False
    )


if __name__ == "__main__":
    sys.stdout.write(render_example())
