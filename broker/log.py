"""slimd's log on stderr: for people on a terminal (rich), JSON lines otherwise."""

from __future__ import annotations

import logging
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TextIO

import msgspec

if TYPE_CHECKING:
    from collections.abc import Mapping

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}
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
        fields.update(_extras(vars(record)))
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return _encoder.encode(fields).decode()


def _extras(values: Mapping[str, object]) -> dict[str, object]:
    return {key: value for key, value in values.items() if key not in _STANDARD}


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
        handler.setFormatter(logging.Formatter("%(name)s: %(message)s"))
    else:
        handler = logging.StreamHandler(target)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # One line per TLS handshake is no news.
    logging.getLogger("asyncio").setLevel(logging.WARNING)
