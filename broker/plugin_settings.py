"""What a plugin gets of the configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class PluginSettings:
    """The tables `[plugins.<name>]` by name, as TOML gave them."""

    host: str
    source: str
    """The configuration file, for messages."""
    tables: Mapping[str, Mapping[str, Any]]

    def table(self, name: str) -> Mapping[str, Any]:
        """A plugin's own table; empty when the file has none."""
        return self.tables.get(name, {})
