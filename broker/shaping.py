"""What policy limits about one connection: rates, marking, quotas; how limits combine. Pure.

Counterparts: shaping_rules.py, which gives them by configuration; limiting.py (traps) and
enforcing.py (control), which put them in force. Rates are bytes of payload per second.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable

MIN_RATE = 1_000
MAX_RATE = 50_000_000_000
MAX_BYTES = 1 << 60
MAX_SECONDS = 366 * 86_400
MAX_DSCP = 63
MAX_PRIORITY = 6
"""Higher ones take CAP_NET_ADMIN (socket(7)): a policy has no use for what no program may have."""

DSCP_NAMES = {
    "default": 0,
    **{f"cs{number}": 8 * number for number in range(8)},
    **{f"af{c}{drop}": 8 * c + 2 * drop for c in range(1, 5) for drop in range(1, 4)},
    "ef": 46,
    "le": 1,
}
"""RFC 2474, 2597, 3246 and 8622."""

_RATE_UNITS = {"bit": 1, "kbit": 10**3, "mbit": 10**6, "gbit": 10**9}
_SIZE_UNITS = {
    "B": 1,
    **{f"{prefix}B": 10 ** (3 * power) for power, prefix in enumerate("kMGT", 1)},
    **{f"{prefix}iB": 1 << (10 * power) for power, prefix in enumerate("KMGT", 1)},
}
_TIME_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_QUANTITY = re.compile(r"([0-9]{1,12})([A-Za-z]{1,4})")


class Shaping(msgspec.Struct, frozen=True, array_like=True, kw_only=True):
    """The limits of one connection, as the end sees them whose policy it is. None: no limit.

    Every field has a stricter direction, the smaller number: so several combine into one.
    """

    send: int | None = None
    """What this end sends, in bytes per second."""
    receive: int | None = None
    """What this end receives; the slimd of the other end enforces it where it sends."""
    dscp: int | None = None
    """DSCP of what this end sends (RFC 2474), 0 to 63."""
    priority: int | None = None
    """SO_PRIORITY, 0 to 6 (socket(7))."""
    quota: int | None = None
    """Bytes in both directions together, after which the connection is ended."""
    lifetime_s: int | None = None
    """Seconds after which it is ended."""
    idle_s: int | None = None
    """Seconds without a byte of payload in either direction after which it is ended."""

    def __bool__(self) -> bool:
        """Whether anything is limited."""
        return self != UNLIMITED

    def describe(self) -> str:
        """For people: "send 200mbit, quota 5GiB"; empty without any limit."""
        texts = (
            ("send", self.send and format_rate(self.send)),
            ("receive", self.receive and format_rate(self.receive)),
            ("dscp", self.dscp),
            ("priority", self.priority),
            ("quota", self.quota and format_size(self.quota)),
            ("lifetime", self.lifetime_s and format_duration(self.lifetime_s)),
            ("idle", self.idle_s and format_duration(self.idle_s)),
        )
        return ", ".join(f"{name} {text}" for name, text in texts if text is not None)


UNLIMITED = Shaping()


def strictest(shapings: Iterable[Shaping | None]) -> Shaping | None:
    """Field by field the smallest number of all; None when nothing is limited."""
    result = UNLIMITED
    for shaping in shapings:
        if shaping:
            result = shaping if result is UNLIMITED else _stricter(result, shaping)
    return result or None


def _stricter(one: Shaping, other: Shaping) -> Shaping:
    return Shaping(
        **{
            name: smaller(getattr(one, name), getattr(other, name))
            for name in Shaping.__struct_fields__
        }
    )


def smaller(one: int | None, other: int | None) -> int | None:
    """The smaller number, where None is no limit at all."""
    if one is None or other is None:
        return other if one is None else one
    return min(one, other)


def find_mistake(shaping: object) -> str:
    """What makes no sense about limits that somebody else made, a peer or a plugin; or nothing."""
    if not isinstance(shaping, Shaping):
        return f"{type(shaping).__name__} is no Shaping"
    bounds = {
        "send": (MIN_RATE, MAX_RATE),
        "receive": (MIN_RATE, MAX_RATE),
        "dscp": (0, MAX_DSCP),
        "priority": (0, MAX_PRIORITY),
        "quota": (1, MAX_BYTES),
        "lifetime_s": (1, MAX_SECONDS),
        "idle_s": (1, MAX_SECONDS),
    }
    for name, (low, high) in bounds.items():
        value = getattr(shaping, name)
        if value is not None and not (type(value) is int and low <= value <= high):
            return f"{name} {value!r} is not between {low} and {high}"
    return ""


# --- units, as people write them --------------------------------------------------------------


def parse_rate(text: str) -> int:
    """Bytes per second of "200mbit": bit, kbit, mbit or gbit, by powers of 1000. ValueError."""
    bits = _parse(text, _RATE_UNITS)
    if not 8 * MIN_RATE <= bits <= 8 * MAX_RATE:
        raise ValueError(f"not between {format_rate(MIN_RATE)} and {format_rate(MAX_RATE)}")
    return bits // 8


def parse_size(text: str) -> int:
    """Bytes of "5GiB": B, kB, MB, GB, TB by powers of 1000, KiB to TiB of 1024. ValueError."""
    size = _parse(text, _SIZE_UNITS)
    if not 1 <= size <= MAX_BYTES:
        raise ValueError("not between 1B and 1048576TiB")
    return size


def parse_duration(text: str) -> int:
    """Seconds of "10m": s, m, h or d. ValueError."""
    seconds = _parse(text, _TIME_UNITS)
    if not 1 <= seconds <= MAX_SECONDS:
        raise ValueError(f"not between 1s and {format_duration(MAX_SECONDS)}")
    return seconds


def parse_dscp(text: str) -> int:
    """The code point of "af21", "ef", "cs1" or a number of 0 to 63. ValueError."""
    if text in DSCP_NAMES:
        return DSCP_NAMES[text]
    if text.isascii() and text.isdigit() and len(text) <= 2 and int(text) <= MAX_DSCP:
        return int(text)
    raise ValueError(f"none of {', '.join(DSCP_NAMES)}, nor a number up to {MAX_DSCP}")


def _parse(text: str, units: dict[str, int]) -> int:
    found = _QUANTITY.fullmatch(text)
    if found is None or found[2] not in units:
        raise ValueError(f"not a whole number with one of the units {', '.join(units)}")
    return int(found[1]) * units[found[2]]


def format_rate(rate: int) -> str:
    """As parse_rate reads it."""
    return _format(8 * rate, _RATE_UNITS)


def format_size(size: int) -> str:
    """As parse_size reads it."""
    return _format(size, _SIZE_UNITS)


def format_duration(seconds: int) -> str:
    """As parse_duration reads it."""
    return _format(seconds, _TIME_UNITS)


def _format(number: int, units: dict[str, int]) -> str:
    """In the largest unit that leaves a whole number; binary ones before decimal ones."""
    fitting = [(size, unit) for unit, size in units.items() if number % size == 0]
    size, unit = max(fitting)
    return f"{number // size}{unit}"
