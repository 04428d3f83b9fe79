"""YAML as nodes that know their lines, from PyYAML's events.

The composer here is our own because files are not to be trusted with memory or time: it counts
nodes and nesting, has no aliases to multiply them, sees keys that are written twice, and calls
itself never. JSON is read the same way, being YAML. Plain scalars mean what Kubernetes' parser
takes them for (YAML 1.1), so `yes` is no text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import yaml

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_DEPTH = 32
MAX_NODES = 100_000
"""Of one document."""

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_NULL = {"", "~", "null", "Null", "NULL"}
_TRUE = {"true", "True", "TRUE", "yes", "Yes", "YES", "on", "On", "ON"}
_FALSE = {"false", "False", "FALSE", "no", "No", "NO", "off", "Off", "OFF"}
_WHOLE = re.compile(r"[-+]?(0|[1-9][0-9]{0,17})")
_NUMERIC = re.compile(
    r"[-+]?([0-9][0-9_]*(\.[0-9_]*)?|\.[0-9][0-9_]*)([eE][-+]?[0-9]+)?"
    r"|[-+]?0([xX][0-9a-fA-F_]+|[oO][0-7_]+|[bB][01_]+)"
    r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
)
_STRING_TAGS = {"tag:yaml.org,2002:str", "!"}


class OddNumber(str):
    """A plain scalar that is a number to some parser, but no decimal whole number."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Node:
    value: Value
    line: int


Scalar: TypeAlias = str | int | bool | None
Value: TypeAlias = "Scalar | dict[str, Node] | list[Node]"


class NotReadable(Exception):
    """The text is no YAML that is read here; everything from `line` on is lost."""

    def __init__(self, line: int, message: str, remedy: str) -> None:
        super().__init__(message)
        self.line = line
        self.message = message
        self.remedy = remedy


def read_documents(text: str) -> Iterator[Node]:
    """The root nodes of a stream; NotReadable ends it."""
    composer: _Composer | None = None
    try:
        for event in yaml.parse(text, Loader=_LOADER):
            match event:
                case yaml.DocumentStartEvent():
                    composer = _Composer()
                case yaml.DocumentEndEvent() if composer is not None and composer.root is not None:
                    yield composer.root
                case yaml.NodeEvent() | yaml.CollectionEndEvent() if composer is not None:
                    composer.take(event)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise NotReadable(
            mark.line + 1 if mark is not None else 0,
            f"this is no YAML: {error.problem or error.context}",
            "mind indentation, quotes and brackets at and above that line",
        ) from None
    except yaml.YAMLError as error:
        # The reader's: a character that YAML does not allow.
        raise NotReadable(
            0, f"this is no YAML: {str(error).splitlines()[0]}", "the file must be plain text"
        ) from None


class _Composer:
    """Builds one document."""

    def __init__(self) -> None:
        self.root: Node | None = None
        self._open: list[tuple[Node, Node | None]] = []
        """Collections around the place we are at, each with the key that waits for its value."""
        self._count = 0

    def take(self, event: yaml.NodeEvent | yaml.CollectionEndEvent) -> None:
        line = _line(event)
        match event:
            case yaml.CollectionEndEvent():
                self._open.pop()
                return
            case yaml.AliasEvent():
                raise NotReadable(line, "aliases are not read here", "write out what *alias means")
            case yaml.ScalarEvent():
                node = Node(_scalar(event, line), line)
            case yaml.MappingStartEvent():
                _check_tag(event, line, "tag:yaml.org,2002:map")
                node = Node({}, line)
            case yaml.SequenceStartEvent():
                _check_tag(event, line, "tag:yaml.org,2002:seq")
                node = Node([], line)
            case _:
                raise AssertionError(event)
        self._count += 1
        if self._count > MAX_NODES:
            raise NotReadable(
                line, f"a document of more than {MAX_NODES} values", "split it into several"
            )
        self._put(node)
        if isinstance(node.value, dict | list):
            if len(self._open) >= MAX_DEPTH:
                raise NotReadable(
                    line, f"values nested more than {MAX_DEPTH} deep", "no policy is that deep"
                )
            self._open.append((node, None))

    def _put(self, node: Node) -> None:
        if not self._open:
            self.root = node
            return
        parent, key = self._open[-1]
        if isinstance(parent.value, list):
            parent.value.append(node)
        elif isinstance(parent.value, dict):
            if key is None:
                self._open[-1] = (parent, _check_key(parent.value, node))
            else:
                parent.value[str(key.value)] = node
                self._open[-1] = (parent, None)


def _line(event: yaml.Event) -> int:
    return event.start_mark.line + 1 if event.start_mark is not None else 0


def _check_key(mapping: dict[str, Node], key: Node) -> Node:
    if not isinstance(key.value, str):
        raise NotReadable(
            key.line,
            f"a key must be text, not {describe(key.value)}",
            "put it into quotes",
        )
    if key.value in mapping:
        raise NotReadable(
            key.line,
            f"the key {key.value[:60]!r} is there twice",
            "one of the two is lost: merge them",
        )
    if key.value == "<<":
        raise NotReadable(key.line, "merge keys (<<) are not read here", "write the fields out")
    return key


def _check_tag(event: yaml.CollectionStartEvent, line: int, own: str) -> None:
    if event.tag not in (None, own, "!"):
        _refuse_tag(event.tag, line)


def _refuse_tag(tag: str, line: int) -> None:
    raise NotReadable(line, f"the tag {tag[:60]!r} is not read here", "leave it out")


def _scalar(event: yaml.ScalarEvent, line: int) -> Scalar:
    text = event.value
    if event.tag is not None and event.tag not in _STRING_TAGS:
        _refuse_tag(event.tag, line)
    if event.style or event.tag is not None:
        return str(text)
    if text in _NULL:
        return None
    if text in _TRUE or text in _FALSE:
        return text in _TRUE
    if _WHOLE.fullmatch(text):
        return int(text)
    return OddNumber(text) if _NUMERIC.fullmatch(text) else str(text)


def describe(value: Value) -> str:
    """What a value is, for messages."""
    match value:
        case None:
            return "nothing"
        case bool():
            return "a truth value"
        case int() | OddNumber():
            return "a number"
        case str():
            return "text"
        case dict():
            return "a mapping"
        case list():
            return "a list"
