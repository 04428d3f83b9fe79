"""slimd's log on stderr: for people on a terminal (rich), JSON lines otherwise."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import TextIO

import msgspec

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}
_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))}
_encoder = msgspec.json.Encoder(enc_hook=str)


class JsonFormatter(logging.Formatter):
    """One JSON object per line: ts (RFC 3339, UTC), level, logger, message, and the extras."""

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, object] = {
            "ts": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        for key, value in vars(record).items():
            if key not in _STANDARD:
                # An extra never takes the place of what every line has.
                fields.setdefault(key, value)
        try:
            return _encoder.encode(fields).decode()
        except UnicodeEncodeError:
            # Bytes of a file name that are not UTF-8 (PEP 383): JSON of the standard library
            # writes them as escapes.
            return json.dumps(fields, default=str, separators=(",", ":"))


class HumanFormatter(logging.Formatter):
    """Text on one line; a name that a container chose cannot begin another, or steer a terminal."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = record.message.translate(_CONTROLS)
        return super().formatMessage(record)


def configure(level: str, form: str, stream: TextIO | None = None) -> None:
    """Send the log of this process to `stream` (stderr). `form`: auto, human or json."""
    target = stream or sys.stderr
    handler: logging.Handler
    if form == "json" or (form == "auto" and not target.isatty()):
        handler = logging.StreamHandler(target)
        handler.setFormatter(JsonFormatter())
    elif target.isatty():
        from rich.console import Console
        from rich.logging import RichHandler

        handler = RichHandler(console=Console(file=target), show_path=False, markup=False)
        handler.setFormatter(HumanFormatter("%(name)s: %(message)s"))
    else:
        handler = logging.StreamHandler(target)
        handler.setFormatter(HumanFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # One line per TLS handshake is no news.
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    logging.getLogger("pyroute2").setLevel(logging.WARNING)
