"""The filter language of every listing: `src:web dst:db* port:5432 -path:fast word /regex/`.

Pure: text and rows in, a test of rows out. Terms with different keys must all hold, of the same
key any; a negated term (`-` or `!`) must not hold, and every word and regex must.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from fnmatch import fnmatchcase
from ipaddress import ip_network
from typing import TYPE_CHECKING, Generic, Protocol, TypeAlias, TypeVar

from slim.broker.endpoints import Endpoint, parse_address
from slim.broker.errors import SlimError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from slim.broker.admin.messages import Connection, Container
    from slim.broker.endpoints import Address

T = TypeVar("T")
Test: TypeAlias = "Callable[[T], bool]"
Makers: TypeAlias = "Mapping[str, Callable[[str], Test[T]]]"

MAX_FILTER = 4096

_TERM = re.compile(r"(?P<negation>[-!]?)(?:/(?P<regex>(?:\\.|[^/\\])*)/(?!\S)|(?P<plain>\S+))")
_KEY = re.compile(r"(?P<key>[a-z]+):(?P<value>.*)", re.DOTALL)


class FilterError(SlimError):
    """A filter that says nothing; `position` counts characters from 1."""

    def __init__(self, position: int, message: str, hint: str) -> None:
        super().__init__(f"filter, character {position}: {message}", hint=hint)
        self.position = position


@dataclass(frozen=True, slots=True)
class Language(Generic[T]):
    """What can be said of one kind of row."""

    makers: Makers[T]
    """By key; what one makes of a value raises ValueError, which says what would be right."""
    text: Callable[[T], str]
    """What words and regexes are looked for in."""

    def compile(self, source: str) -> Test[T]:
        """The test that a filter describes; an empty one holds for every row."""
        if len(source) > MAX_FILTER:
            raise FilterError(
                MAX_FILTER + 1, "the filter is too long", f"use at most {MAX_FILTER} characters"
            )
        any_of: dict[str, list[Test[T]]] = defaultdict(list)
        none_of: list[Test[T]] = []
        all_of: list[Test[T]] = []
        for match in _TERM.finditer(source):
            key, test = self._term(match)
            if match["negation"]:
                none_of.append(test)
            elif key:
                any_of[key].append(test)
            else:
                all_of.append(test)
        groups = [*any_of.values()]

        def holds(row: T) -> bool:
            return (
                all(any(test(row) for test in group) for group in groups)
                and all(test(row) for test in all_of)
                and not any(test(row) for test in none_of)
            )

        return holds

    def _term(self, match: re.Match[str]) -> tuple[str, Test[T]]:
        at = match.start() + 1
        text = self.text
        if match["regex"] is not None:
            try:
                pattern = re.compile(match["regex"])
            except re.error as error:
                start = match.start("regex") + 1 + (error.pos or 0)
                raise FilterError(start, error.msg, "write a Python regex: /^web-[0-9]+/") from None
            return "", lambda row: pattern.search(text(row)) is not None
        plain: str = match["plain"]
        if plain.startswith("/"):
            raise FilterError(
                at, f"{plain!r} is no whole regex", r"write /regex/, then a space; \/ is a slash"
            )
        if plain[0] in "-!":
            raise FilterError(at, f"{match[0]!r} begins with no word", "write one - or !, a term")
        found = _KEY.fullmatch(plain)
        # `fd00::2` and `10.1.0.2:80` are words: their colons follow no name of a key.
        if found is None or (found["value"].startswith(":") and found["key"] not in self.makers):
            word = plain.casefold()
            return "", lambda row: word in text(row).casefold()
        key, value = found["key"], found["value"]
        make = self.makers.get(key)
        if make is None:
            raise FilterError(at, f"no key {key!r}", f"the keys are {', '.join(self.makers)}")
        try:
            if not value:
                raise ValueError("a value follows the colon")
            return key, make(value)
        except ValueError as error:
            raise FilterError(
                match.start("plain") + 1 + len(key) + 1,
                f"{plain!r} cannot be read",
                f"{key}: {error}",
            ) from None


class Names:
    """Which workload of this host has an overlay address, as a given workload sees it."""

    def __init__(self, containers: Iterable[Container] = ()) -> None:
        self._overlays: dict[str, set[str]] = defaultdict(set)
        self._owners: dict[tuple[str, Address], set[str]] = defaultdict(set)
        for row in containers:
            self._overlays[row.workload].add(row.overlay)
            for text in row.addresses:
                self._owners[row.overlay, parse_address(text)].add(row.workload)

    def find(self, workload: str, address: Address) -> set[str]:
        """Overlays may use the same addresses: only those of the workload's own count."""
        overlays = self._overlays.get(workload, set())
        return {name for o in overlays for name in self._owners.get((o, address), ())}


def connection_language(names: Names | None = None) -> Language[Connection]:
    """For connections and listeners; without names only the own end has one."""
    known = names or Names()
    makers: Makers[Connection] = {
        "workload": glob_test(lambda row: [row.workload]),
        "process": glob_test(lambda row: [row.process, *row.process.split("/", 1)]),
        "src": lambda value: end_test(value, 0, known),
        "dst": lambda value: end_test(value, 1, known),
        "port": port_test,
        "dir": choice_test(("out", "in", "listen"), lambda row: [row.direction]),
        "path": choice_test(("fast", "fallback", "denied"), lambda row: [row.path]),
        "reason": glob_test(lambda row: [row.reason]),
        "verdict": choice_test(("allow", "deny"), lambda row: [row.verdict]),
        "rule": glob_test(lambda row: [row.rule]),
        "state": glob_test(lambda row: [row.state]),
        "id": number_test(lambda row: row.cookie),
    }
    return Language(makers, _connection_text)


def container_language() -> Language[Container]:
    makers: Makers[Container] = {
        "container": lambda value: lambda row: fnmatchcase(row.container, f"{value}*"),
        "workload": glob_test(lambda row: [row.workload]),
        "namespace": glob_test(lambda row: [row.namespace]),
        "overlay": glob_test(lambda row: [row.overlay]),
        "address": _address,
        "pid": number_test(lambda row: row.pid),
        "command": glob_test(lambda row: [" ".join(row.command), *row.command[:1]]),
        "label": glob_test(lambda row: [*row.labels, *_labels(row)]),
        "isolated": choice_test(("ingress", "egress"), lambda row: row.isolated),
    }
    return Language(makers, _container_text)


def _connection_text(row: Connection) -> str:
    ends = (row.overlay_local, row.overlay_peer, row.host_local, row.host_peer)
    said = (row.path, row.reason, row.verdict, row.rule, row.state)
    return " ".join((row.direction, row.workload, row.process, *ends, *said))


def _container_text(row: Container) -> str:
    who = (row.container, row.workload, row.namespace, row.overlay, str(row.pid))
    return " ".join((*who, *row.addresses, *row.command, *row.isolated, *_labels(row)))


def _labels(row: Container) -> Iterator[str]:
    return (f"{key}={value}" for key, value in row.labels.items())


class HasEnds(Protocol):
    """A connection, or an event of one."""

    @property
    def direction(self) -> str: ...
    @property
    def workload(self) -> str: ...
    @property
    def overlay_local(self) -> str: ...
    @property
    def overlay_peer(self) -> str: ...


def _ends(row: HasEnds) -> tuple[str, str]:
    """Who connected, and to what; a listener is what one connects to."""
    own, peer = row.overlay_local, row.overlay_peer
    return (own, peer) if row.direction == "out" else (peer, own)


def end_test(value: str, index: int, names: Names) -> Test[HasEnds]:
    """Who connected (index 0), or to what (1)."""
    try:
        network = ip_network(value)
    except ValueError as error:
        # Names hold no colon or slash, and none is all digits and dots: an address gone wrong.
        if re.fullmatch(r"[0-9.]+|.*[:/].*", value):
            raise ValueError(f"{error}; write a name (db*), an address or a network") from None
        return lambda row: any(fnmatchcase(n, value) for n in _end_names(row, index, names))

    def test(row: HasEnds) -> bool:
        end = _ends(row)[index]
        return bool(end) and Endpoint.parse(end).address in network

    return test


def _end_names(row: HasEnds, index: int, names: Names) -> Iterable[str]:
    if (index == 0) == (row.direction == "out"):
        return (row.workload,)
    end = _ends(row)[index]
    return names.find(row.workload, Endpoint.parse(end).address) if end else ()


def port_test(value: str) -> Test[HasEnds]:
    port = _digits(value)

    def test(row: HasEnds) -> bool:
        to = _ends(row)[1]
        return bool(to) and Endpoint.parse(to).port == port

    return test


def _address(value: str) -> Test[Container]:
    try:
        network = ip_network(value)
    except ValueError as error:
        raise ValueError(f"{error}; write an address or a network") from None
    return lambda row: any(parse_address(text) in network for text in row.addresses)


def glob_test(values: Callable[[T], Iterable[str]]) -> Callable[[str], Test[T]]:
    return lambda value: lambda row: any(fnmatchcase(text, value) for text in values(row))


def choice_test(
    choices: tuple[str, ...], values: Callable[[T], Iterable[str]]
) -> Callable[[str], Test[T]]:
    def make(value: str) -> Test[T]:
        if value not in choices:
            raise ValueError(f"write one of {', '.join(choices)}")
        return lambda row: value in values(row)

    return make


def number_test(number: Callable[[T], int]) -> Callable[[str], Test[T]]:
    def make(value: str) -> Test[T]:
        wanted = _digits(value)
        return lambda row: number(row) == wanted

    return make


def _digits(value: str) -> int:
    # 20 digits hold any 64-bit cookie.
    if not (value.isascii() and value.isdigit() and len(value) <= 20):
        raise ValueError("write a number")
    return int(value)
