"""The directory of documents that a slimd has in force, and changes of one file in it.

A file is what is put there, replaced and removed, at once and whole; slimd reads all of them.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from slim.broker.plugin_api import ConfigError
from slim.plugins.policy.networkpolicy.loading import SUFFIXES, load
from slim.plugins.policy.networkpolicy.plugin import NetworkPolicyTable
from slim.plugins.policy.networkpolicy.wording import NAME

if TYPE_CHECKING:
    from slim.broker.plugin_api import PluginSettings
    from slim.plugins.policy.networkpolicy.loading import Loaded

MODE = 0o644
LONGEST_NAME = 200


@dataclass(frozen=True, slots=True)
class Change:
    """A file as it shall be."""

    file: Path
    content: bytes | None
    """None: not there."""


@dataclass(frozen=True, slots=True)
class PolicyDirectory:
    path: Path

    @classmethod
    def of(cls, settings: PluginSettings) -> PolicyDirectory:
        """That of `[plugins.networkpolicy]`; ConfigError if it names none."""
        path = path_in(settings)
        if not path.is_dir():
            raise ConfigError(
                f"{path} is no directory",
                hint="edit that file and say slimctl reload, or let `path` name a directory",
            )
        return cls(path)

    def load(self) -> Loaded:
        return load(self.path)

    def load_with(self, change: Change, before: Loaded) -> Loaded:
        """What the directory would say; `before` is what it says."""
        return load(self.path, before, {change.file: change.content})

    def file(self, name: str) -> Path:
        """Where a file of that name is, or would be; ConfigError for names that are not read."""
        is_plain = name == Path(name).name and name.isprintable()
        if not is_plain or name.startswith(".") or Path(name).suffix not in SUFFIXES:
            raise ConfigError(
                f"{name!r} would not be read as a file of policies",
                hint=f"a name ends in {', '.join(SUFFIXES)} and begins with no dot",
            )
        if len(name) > LONGEST_NAME:
            raise ConfigError(f"the name {name!r} is too long", hint=f"{LONGEST_NAME} will do")
        return self.path / name

    def read(self, file: Path) -> bytes | None:
        """What a file of the directory holds; None: there is none."""
        if file.is_symlink():
            raise ConfigError(
                f"{file} is a symbolic link: something else manages it",
                hint="change it there, and say slimctl reload",
            )
        try:
            # All of it, however large: it may have to be put back.
            return file.read_bytes()
        except FileNotFoundError:
            return None

    def write(self, change: Change) -> None:
        """Make it so, at once and so that it outlives a power failure."""
        if change.content is None:
            change.file.unlink(missing_ok=True)
        else:
            # Hidden: a slimd that reads the directory meanwhile must not see it.
            fd, name = tempfile.mkstemp(prefix=".slim-", dir=self.path)
            try:
                with open(fd, "wb") as stream:
                    os.fchmod(fd, _mode_of(change.file))
                    stream.write(change.content)
                    stream.flush()
                    os.fsync(fd)
                Path(name).replace(change.file)
            except BaseException:
                Path(name).unlink()
                raise
        directory = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def path_in(settings: PluginSettings) -> Path:
    """The file or directory in force; ConfigError if there is none."""
    table = settings.read(NAME, NetworkPolicyTable)
    if table.path is None:
        raise settings.mistake(
            NAME,
            "no documents are in force",
            key="path",
            hint='name a directory: [plugins.networkpolicy] path = "/etc/slim/policies"',
        )
    return Path(table.path)


def _mode_of(file: Path) -> int:
    try:
        return file.stat().st_mode & 0o777
    except FileNotFoundError:
        return MODE
