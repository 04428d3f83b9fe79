"""Reading the fields of a document: the type is right, or there is a mistake with its place.

A method that finds a mistake notes it and gives None (or nothing): the reader goes on, so that one
look at a document finds all that is wrong with it.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from slim.plugins.policy.networkpolicy.mistakes import Mistake, shown
from slim.plugins.policy.networkpolicy.yaml_nodes import OddNumber, describe

if TYPE_CHECKING:
    from collections.abc import Sequence

    from slim.plugins.policy.networkpolicy.model import Origin
    from slim.plugins.policy.networkpolicy.yaml_nodes import Node

MAX_MISTAKES = 1000


@dataclass(slots=True)
class Report:
    """Of one document: where mistakes go."""

    origin: Origin
    title: str = ""
    found: list[Mistake] = field(default_factory=list)

    def add(
        self, line: int, path: str, message: str, remedy: str, *, is_warning: bool = False
    ) -> None:
        if len(self.found) < MAX_MISTAKES:
            self.found.append(
                Mistake(
                    file=self.origin.file,
                    line=line,
                    document=self.origin.number,
                    title=self.title,
                    path=path,
                    message=message,
                    remedy=remedy,
                    is_warning=is_warning,
                )
            )


@dataclass(frozen=True, slots=True)
class Field:
    """A value, and where it stands."""

    node: Node
    path: str
    report: Report

    def mistake(self, message: str, remedy: str) -> None:
        self.report.add(self.node.line, self.path, message, remedy)

    def warn(self, message: str, remedy: str) -> None:
        self.report.add(self.node.line, self.path, message, remedy, is_warning=True)

    def _is_not(self, wanted: str, remedy: str) -> None:
        value = self.node.value
        what = describe(value)
        if not isinstance(value, dict | list) and value is not None:
            what += f", {shown(str(value) if isinstance(value, OddNumber) else value)}"
        self.mistake(f"must be {wanted}, not {what}", remedy)

    @property
    def is_text(self) -> bool:
        return isinstance(self.node.value, str) and not isinstance(self.node.value, OddNumber)

    @property
    def is_mapping(self) -> bool:
        return isinstance(self.node.value, dict)

    def children(self) -> dict[str, Field]:
        """The fields of a mapping, whatever they are; what is null is as if it were not there."""
        if self.node.value is None:
            return {}
        if not isinstance(self.node.value, dict):
            self._is_not("a mapping", "write it as `key: value`, indented below")
            return {}
        prefix = f"{self.path}." if self.path else ""
        return {
            key: Field(node, f"{prefix}{key}", self.report)
            for key, node in self.node.value.items()
            if node.value is not None
        }

    def entries(self, known: Sequence[str]) -> dict[str, Field]:
        """The fields of a mapping that has only these; another is a mistake."""
        found = self.children()
        for key, own in found.items():
            if key not in known:
                near = difflib.get_close_matches(key, known, 1)
                own.mistake(
                    "there is no such field",
                    f"did you mean {near[0]}?" if near else f"there are: {', '.join(known)}",
                )
        return {key: own for key, own in found.items() if key in known}

    def items(self, least: int = 0, most: int | None = None) -> list[Field]:
        """The items of a list."""
        value = self.node.value
        if not isinstance(value, list):
            self._is_not("a list", "begin each item with `- `")
            return []
        if len(value) < least:
            self.mistake("must have at least one item", "add one, or leave the whole rule out")
        if most is not None and len(value) > most:
            self.mistake(f"has {len(value)} items, and {most} is the most", "split it into several")
            return []
        found = []
        for index, node in enumerate(value):
            own = Field(node, f"{self.path}[{index}]", self.report)
            if node.value is None:
                own.mistake("the item is empty", "write {} if it is meant to match everything")
            else:
                found.append(own)
        return found

    def text(self) -> str | None:
        value = self.node.value
        if isinstance(value, str) and self.is_text:
            return value
        scalar = isinstance(value, bool | int | OddNumber)
        remedy = "put it into quotes" if scalar else "write it as one value"
        self._is_not("text", remedy)
        return None

    def whole_number(self, first: int, last: int) -> int | None:
        value = self.node.value
        if isinstance(value, bool) or not isinstance(value, int):
            self._is_not(f"a whole number from {first} to {last}", "write it in digits, unquoted")
            return None
        if not first <= value <= last:
            self.mistake(f"{shown(value)} is not between {first} and {last}", "choose one that is")
            return None
        return value

    def choice(self, known: Sequence[str]) -> str | None:
        """One of these words."""
        value = self.text()
        if value is None or value in known:
            return value
        near = difflib.get_close_matches(value, known, 1) or [
            word for word in known if word.lower() == value.lower()
        ]
        self.mistake(
            f"{shown(value)} is none of {', '.join(known)}",
            f"did you mean {near[0]}?" if near else "choose one of them",
        )
        return None

    def missing(self, name: str, remedy: str) -> None:
        """A field that this mapping must have."""
        path = f"{self.path}.{name}" if self.path else name
        self.report.add(self.node.line, path, "is missing", remedy)
