"""Writes events to a file, one JSON object a line, and starts another file when it is full.

    [plugins.jsonlines]
    path = "/var/log/slim/events.jsonl"     # without it nothing is written
    max_size = "10MiB"                      # of one file
    keep = 5                                # older files: events.jsonl.1 is the newest of them
    events = ["connection-opened"]          # kinds (docs/slimctl.md); default: all

A thread writes, so that slimd waits for no disk. What comes faster than the disk takes it is
lost, and an `events-lost` line in its place says how much.
"""

from __future__ import annotations

import logging
import logging.handlers
import os
import queue
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec

from slim.broker.plugin_api import (
    KINDS,
    Event,
    EventsLost,
    PluginSettings,
    hookimpl,
    kind_of,
    parse_size,
)

if TYPE_CHECKING:
    from io import TextIOWrapper

NAME = "jsonlines"
QUEUE = 10_000
"""Events that wait for the disk, at most."""
STOP_S = 0.9
FILE_MODE = 0o640
MIN_BYTES = 4096

log = logging.getLogger(__name__)
_encoder = msgspec.json.Encoder()


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The table `[plugins.jsonlines]`."""

    path: str | None = None
    max_size: str = "10MiB"
    keep: Annotated[int, msgspec.Meta(ge=0, le=1000)] = 5
    events: list[str] | None = None


class RotatingFile(logging.handlers.RotatingFileHandler):
    """The file, as `logging` rotates files; a failure is told once until writing works again."""

    def __init__(self, path: Path, max_bytes: int, keep: int) -> None:
        # Without older files there is nothing to move the full one to: one is kept then, too.
        super().__init__(path, maxBytes=max_bytes, backupCount=max(1, keep), delay=True)
        self._is_failing = False
        self._keeps_none = not keep
        self.unwritten = 0
        """Lines that could not be written since one last could; its user's to count."""

    def write(self, line: str) -> bool:
        """Append a line; whether that was done."""
        record = logging.makeLogRecord({"msg": line})
        try:
            if self.shouldRollover(record):
                self.doRollover()
                if self._keeps_none:
                    Path(f"{self.baseFilename}.1").unlink(missing_ok=True)
            if self.stream is None:
                self.stream = self._open()
            self.stream.write(line + self.terminator)
            self.stream.flush()
            self._is_failing = False
        except OSError as error:
            if not self._is_failing:
                self._is_failing = True
                log.error("%s: events are not written: %s", self.baseFilename, error.strerror)
            return False
        return True

    def _open(self) -> TextIOWrapper:
        def opener(path: str, flags: int) -> int:
            return os.open(path, flags | os.O_CLOEXEC, FILE_MODE)

        return open(self.baseFilename, "a", encoding="utf-8", opener=opener)


@dataclass(eq=False)
class Plugin:
    """One instance per configuration; its thread starts with the first event."""

    settings: Settings = field(default_factory=Settings)
    lost: int = 0
    _kinds: frozenset[str] = frozenset(KINDS)
    _max_bytes: int = 0
    _queue: queue.Queue[Event | None] = field(default_factory=lambda: queue.Queue(QUEUE))
    _writer: threading.Thread | None = None

    @hookimpl
    def slim_configure(self, settings: PluginSettings) -> None:
        own = settings.read(NAME, Settings)
        if own.path is not None:
            self._check_path(settings, own.path)
        if own.events is not None:
            unknown = sorted({*own.events} - KINDS.keys())
            if unknown:
                raise settings.mistake(
                    NAME,
                    f"there is no event {unknown[0]!r}",
                    key="events",
                    hint=f"there are: {', '.join(sorted(KINDS))}",
                )
            self._kinds = frozenset(own.events)
        try:
            self._max_bytes = parse_size(own.max_size)
        except ValueError as error:
            raise settings.mistake(NAME, str(error), key="max_size") from None
        if self._max_bytes < MIN_BYTES:
            raise settings.mistake(NAME, f"less than {MIN_BYTES} bytes", key="max_size")
        self.settings = own

    def _check_path(self, settings: PluginSettings, text: str) -> None:
        path = Path(text)
        mistake = ""
        if not path.is_absolute():
            mistake = f"{text!r} is no absolute path"
        elif not path.parent.is_dir():
            mistake = f"there is no directory {path.parent}"
        elif path.exists() and not path.is_file():
            mistake = f"{text!r} is no file"
        if mistake:
            raise settings.mistake(NAME, mistake, key="path", hint="name a file to write to")

    @hookimpl
    def slim_observe(self, event: Event) -> None:
        if self.settings.path is None or kind_of(event) not in self._kinds:
            return
        if self._writer is None:
            self._writer = threading.Thread(target=self._write, name="events to file", daemon=True)
            self._writer.start()
        try:
            if self.lost:
                self._queue.put_nowait(EventsLost(count=self.lost))
                self.lost = 0
            self._queue.put_nowait(event)
        except queue.Full:
            self.lost += 1

    @hookimpl
    def slim_stop(self) -> None:
        if self._writer is not None:
            try:
                self._queue.put(None, timeout=STOP_S / 2)
            except queue.Full:
                log.error("%s: the last events are not written", self.settings.path)
                return
            self._writer.join(STOP_S / 2)

    def _write(self) -> None:
        assert self.settings.path is not None
        file = RotatingFile(Path(self.settings.path), self._max_bytes, self.settings.keep)
        while (event := self._queue.get()) is not None:
            lost = file.unwritten
            if lost and file.write(_encoder.encode(EventsLost(count=lost)).decode()):
                lost = 0
            file.unwritten = lost + (not file.write(_encoder.encode(event).decode()))
            self._queue.task_done()
        file.close()
