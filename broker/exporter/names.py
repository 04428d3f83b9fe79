"""Names that become labels: printable, and not more of them than Prometheus can bear."""

from __future__ import annotations

MOST_VALUES = 200
MOST_CHARACTERS = 120
OTHER = "other"


class LabelValues:
    """The values of one label. Rules, reasons and peers are many where somebody makes them so."""

    def __init__(self, most: int = MOST_VALUES) -> None:
        self._most = most
        self._known: set[str] = set()

    def admit(self, value: str) -> str:
        """The value, or `other` once there are too many."""
        value = "".join(char if char.isprintable() else "?" for char in value[:MOST_CHARACTERS])
        if value not in self._known:
            if len(self._known) >= self._most:
                return OTHER
            self._known.add(value)
        return value
