"""What is known of the keys of a table: read from the annotations of config_tables.py.

Used to print the example file (config_example.py) and to word remedies (config_file.py).
"""

from __future__ import annotations

import inspect
import json
from dataclasses import dataclass
from functools import cache
from typing import Any

import msgspec


class Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of all tables; the docstring of a table is its comment in the example file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """What may be said about one key: of a value, or of a table (then `table` is its type)."""

    name: str
    required: bool
    description: str
    example: object
    """The default, or where that says nothing, a likely value."""
    table: type[Table] | None
    repeated: bool
    """Whether the table may be written several times, as [[name]]."""

    @property
    def line(self) -> str:
        """The key with its example, as it stands in a file."""
        return f"{self.name} = {_literal(self.example)}"


@cache
def keys_of(table: type[Table]) -> dict[str, Key]:
    """The keys of a table in the order of their declaration, by name."""
    shape = msgspec.inspect.type_info(table)
    assert isinstance(shape, msgspec.inspect.StructType)
    return {field.name: _key(field) for field in shape.fields}


def describe(table: type[Table]) -> str:
    """The table's docstring as one paragraph."""
    return " ".join((inspect.getdoc(table) or "").split())


def _key(field: msgspec.inspect.Field) -> Key:
    shape = field.type
    schema: dict[str, Any] = {}
    if isinstance(shape, msgspec.inspect.Metadata):
        schema = shape.extra_json_schema or {}
        shape = shape.type
    repeated = isinstance(shape, msgspec.inspect.VarTupleType)
    candidates: tuple[msgspec.inspect.Type, ...] = (shape,)
    if isinstance(shape, msgspec.inspect.VarTupleType):
        candidates = (shape.item_type,)
    elif isinstance(shape, msgspec.inspect.UnionType):
        candidates = shape.types
    tables = [c.cls for c in candidates if isinstance(c, msgspec.inspect.StructType)]
    table = next((found for found in tables if issubclass(found, Table)), None)
    return Key(
        name=field.name,
        required=field.required,
        description=schema.get("description", ""),
        example=schema.get("examples", [field.default])[0],
        table=table,
        repeated=repeated and table is not None,
    )


def _literal(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_literal(item)}" for key, item in value.items()) + "}"
    # A JSON string, number or list of them is one of TOML too.
    return json.dumps(value)
