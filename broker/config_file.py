"""Reads the configuration file into its tables (config_tables.py); words what is wrong with it.

Counterpart of config.py, which checks what the values mean. Whatever is wrong is one ConfigError
that names the file, the table, the key and the remedy.
"""

from __future__ import annotations

import difflib
import errno
import os
import re
import stat
import tomllib
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, TypeAlias

import msgspec

from slim.broker.config_keys import Key, Table, describe, keys_of
from slim.broker.config_tables import ConfigTables, PluginsTable
from slim.broker.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MAX_BYTES = 1 << 20

PluginTables: TypeAlias = dict[str, dict[str, object]]
"""The tables [plugins.<name>] by name, as TOML gives them."""
Step: TypeAlias = str | int
"""A key, or an index into a list, on the way from the top of the file to a value."""


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """A file whose keys and types are right."""

    path: Path
    tables: ConfigTables
    plugin_tables: PluginTables

    def at(self, *steps: Step) -> Place:
        return Place(self, steps)


@dataclass(frozen=True, slots=True)
class Place:
    """Where in the file a value is; it need not be there."""

    file: ConfigFile
    steps: tuple[Step, ...]

    def mistake(self, what: str, remedy: str = "") -> ConfigError:
        """The error to raise for this value; without a remedy its key is explained."""
        return _mistake(self.file.path, self.steps, what, remedy)


def read_config_file(path: Path) -> ConfigFile:
    """Read, parse and convert; ConfigError for whatever is wrong."""
    path = path.absolute()
    raw = _parse(path, _read(path))
    plugin_tables = _split_plugin_tables(raw)
    try:
        tables = msgspec.convert(raw, ConfigTables)
    except msgspec.ValidationError as error:
        raise _reworded(path, str(error)) from None
    return ConfigFile(path, tables, plugin_tables)


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading; OSError for anything else, without waiting for a FIFO."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    mode = os.fstat(fd).st_mode
    if stat.S_ISREG(mode):
        return os.fdopen(fd, "rb")
    os.close(fd)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    raise OSError(errno.EINVAL, "Not a regular file")


def _read(path: Path) -> str:
    try:
        with open_regular(path) as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot read the configuration: {error.strerror}",
            hint="name a configuration file that slimd can read",
        ) from None
    if len(data) > MAX_BYTES:
        raise ConfigError(
            f"{path}: larger than {MAX_BYTES} bytes", hint="is this the configuration file?"
        )
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}: line {line} is not UTF-8", hint="save it as UTF-8") from None


def _parse(path: Path, text: str) -> dict[str, object]:
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ConfigError(f"{path}: nested too deeply", hint="no key needs that") from None
    except tomllib.TOMLDecodeError as error:
        what, _, at = str(error).partition(" (at ")
        # The other form is "at end of document".
        found = re.match(r"line (\d+)", at)
        line = found[1] if found else text.count("\n") + 1
        raise ConfigError(
            f"{path}: line {line}: not TOML: {what}",
            hint="correct that line; strings take quotes, lists take [ ] (https://toml.io)",
        ) from None
    except ValueError:
        # int() refuses more than 4300 digits, and does not say where they are.
        raise ConfigError(
            f"{path}: a number has thousands of digits", hint="no key needs that"
        ) from None


def _split_plugin_tables(raw: dict[str, object]) -> PluginTables:
    """Take the settings of plugins out; a key that is no table is left, as one too many."""
    plugins = raw.get("plugins")
    if not isinstance(plugins, dict):
        return {}
    known = keys_of(PluginsTable)
    names = [name for name, value in plugins.items() if isinstance(value, dict)]
    return {name: plugins.pop(name) for name in names if name not in known}


# --- wording ----------------------------------------------------------------------------------

_PLACE = re.compile(r"(?P<what>.*?)(?: - at `\$(?P<at>[^`]*)`)?", re.S)
_STEP = re.compile(r"\.?([^.\[\]]+)|\[(\d+)\]")
_TYPE = re.compile(r"Expected `(.*)`, got `(.*)`")
_BOUND = re.compile(r"Expected `int` (>=|<=) (\d+)")
_LENGTH = re.compile(r"Expected `\w+` of length (>=|<=) (\d+)")
_MISSING = re.compile(r"Object missing required field `(.*)`")
_UNKNOWN = re.compile(r"Object contains unknown field `(.*)`", re.S)
_CHOICE = re.compile(r"Invalid enum value '(.*)'", re.S)
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]{1,60}")

_BOUNDS = {">=": "at least", "<=": "at most"}
_TYPES = {
    "str": "a string",
    "int": "an integer",
    "float": "a number with a fraction",
    "bool": "true or false",
    "array": "a list",
    "object": "a table",
}


def _reworded(path: Path, text: str) -> ConfigError:
    """msgspec's message in the words of TOML."""
    whole = _PLACE.fullmatch(text)
    assert whole is not None
    what = whole["what"]
    steps: tuple[Step, ...] = tuple(
        int(index) if index else name for name, index in _STEP.findall(whole["at"] or "")
    )
    if found := _UNKNOWN.fullmatch(what):
        return _unknown_key(path, steps, found[1])
    if found := _MISSING.fullmatch(what):
        return _mistake(path, (*steps, found[1]), "is missing")
    if found := _TYPE.fullmatch(what):
        wanted, given = (name.removesuffix(" | null") for name in found.groups())
        what = f"must be {_TYPES.get(wanted, wanted)}, not {_TYPES.get(given, given)}"
        if whole["at"].endswith("]") and not _is_table(steps):
            what = f"every entry {what}"
        return _mistake(path, steps, what, _brackets(steps, wanted, given))
    if found := _BOUND.fullmatch(what):
        what = f"must be {_BOUNDS[found[1]]} {found[2]}"
    elif found := _LENGTH.fullmatch(what):
        what = f"must have {_BOUNDS[found[1]]} {found[2]} entr{'y' if found[2] == '1' else 'ies'}"
    elif found := _CHOICE.fullmatch(what):
        what = f"{quoted(found[1])} is not one of its values"
    return _mistake(path, steps, what)


def _unknown_key(path: Path, steps: tuple[Step, ...], name: str) -> ConfigError:
    known = keys_of(_walk(steps)[1])
    if homes := [*_homes(name)]:
        remedy = f"it belongs {' or '.join(homes)}"
    elif near := difflib.get_close_matches(name, known, n=1):
        remedy = f"the nearest key is {near[0]}"
    else:
        remedy = f"known keys: {', '.join(known)}"
        if steps == ("plugins",):
            remedy += "; settings of a plugin go into a table [plugins.<name>]"
    shown = name if _BARE_KEY.fullmatch(name) else quoted(name)
    return _mistake(path, (*steps, shown), "unknown key", remedy)


def _homes(
    name: str, table: type[Table] = ConfigTables, steps: tuple[Step, ...] = ()
) -> Iterator[str]:
    """Where a key of that name is known."""
    for key in keys_of(table).values():
        inside = (*steps, key.name)
        if key.name == name:
            if key.table is not None:
                yield f"into a table of its own, {_walk(inside)[0]}"
            elif steps:
                yield f"into {_walk(steps)[0]}"
            else:
                yield "to the top of the file, above the first [table]"
        if key.table is not None:
            yield from _homes(name, key.table, inside)


def _is_table(steps: tuple[Step, ...]) -> bool:
    key = _walk(steps)[2]
    return key is not None and key.table is not None


def _brackets(steps: tuple[Step, ...], wanted: str, given: str) -> str:
    """The remedy where [name] was written for [[name]] or the reverse."""
    place, _, key = _walk(steps)
    if {wanted, given} != {"array", "object"} or key is None or key.table is None:
        return ""
    return f"write {place}, with {'two brackets' if key.repeated else 'one bracket'} on each side"


def _mistake(path: Path, steps: tuple[Step, ...], what: str, remedy: str = "") -> ConfigError:
    place, _, key = _walk(steps)
    if not remedy and key is not None:
        remedy = key.description
        if key.table is None:
            remedy += f" Example: {key.line}"
        else:
            needed = [inner.line for inner in keys_of(key.table).values() if inner.required]
            remedy = f"{describe(key.table)} It takes at least: {'; '.join(needed)}"
    return ConfigError(f"{path}: {place}: {what}", hint=remedy)


def _walk(steps: tuple[Step, ...]) -> tuple[str, type[Table], Key | None]:
    """How a person finds the value at `steps`, its innermost table, and what is known of its key.

    The number of an element in a list of values is left out: messages quote the value.
    """
    table: type[Table] = ConfigTables
    key: Key | None = None
    dotted = header = ""
    for step in steps:
        if isinstance(step, int):
            header += f" number {step + 1},"
            continue
        key = keys_of(table).get(step)
        if key is None or key.table is None:
            return f"{header} {step}".lstrip(), table, key
        table = key.table
        dotted = f"{dotted}.{step}".lstrip(".")
        header = f"[[{dotted}]]" if key.repeated else f"[{dotted}]"
    return header.rstrip(","), table, key


def quoted(text: str) -> str:
    """Text from the file as messages show it: in quotes, the first 60 characters."""
    return repr(text if len(text) <= 60 else text[:57] + "...")
