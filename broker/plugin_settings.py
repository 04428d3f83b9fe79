"""The `[plugins.<name>]` tables of the configuration, and how a plugin reads its own.

Slim does not look into these tables; the types that plugins give here are their schema.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from slim.broker.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class PluginSettings:
    """What the configuration says to plugins."""

    host: str
    """This host's name."""
    source: str
    """The configuration file, for messages."""
    tables: Mapping[str, Mapping[str, Any]]
    """By plugin name, as TOML gave them."""

    def table(self, name: str) -> Mapping[str, Any]:
        """A plugin's own table; empty when the file has none."""
        return self.tables.get(name, {})

    def read(self, name: str, schema: type[T]) -> T:
        """A plugin's own table as a value of its own type.

        ConfigError names the file, the table and the key when it does not fit. A type that is a
        `msgspec.Struct` should set `forbid_unknown_fields`, so that a misspelt key is noticed.

        :param name: the plugin's name.
        :param schema: what msgspec.convert makes of the table, usually a Struct.
        """
        try:
            return msgspec.convert(dict(self.table(name)), schema)
        except msgspec.ValidationError as error:
            what, _, where = str(error).partition(" - at `$")
            raise self.mistake(
                name,
                what,
                key=where.rstrip("`").lstrip("."),
                hint=f"the documentation of plugin {name!r} lists its settings",
            ) from None

    def mistake(self, name: str, message: str, *, key: str = "", hint: str = "") -> ConfigError:
        """The error to raise for a setting that has the right type but makes no sense.

        :param name: the plugin's name.
        :param message: what is wrong.
        :param key: where in the plugin's table, for example `peers[0].control`.
        :param hint: what to do about it.
        """
        where = f"[plugins.{name}]" + (f" {key}" if key else "")
        return ConfigError(f"{self.source}: {where}: {message}", hint=hint)
