"""What is wrong with a document, or suspicious: one message each, with place and remedy."""

from __future__ import annotations

from dataclasses import dataclass

MAX_SHOWN = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Mistake:
    """Printed as `web.yaml:12: document 2, NetworkPolicy shop/web: spec.ingress[0]: ...`."""

    file: str
    line: int = 0
    document: int = 0
    """From 1; 0: the file as a whole."""
    title: str = ""
    """Kind, namespace and name, as far as they could be read."""
    path: str = ""
    message: str
    remedy: str
    is_warning: bool = False
    """The policy is in force, but may not mean what its author thinks."""

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}" if self.line else self.file
        document = ""
        if self.document:
            document = f"document {self.document}" + (f", {self.title}" if self.title else "")
        parts = [where, document, self.path, self.message]
        return ": ".join(part for part in parts if part)


def shown(value: object) -> str:
    """A value of a document for a message: quoted, printable, and not longer than a line."""
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 3]}..."
