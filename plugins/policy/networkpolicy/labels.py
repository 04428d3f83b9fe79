"""Many label selectors at once: which of them match these labels, as one integer of bits.

Selector number i is bit i. The cost of `matching` is a few operations on such integers for each
label of the asker, and does not grow with the number of keys that selectors name.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from slim.plugins.policy.networkpolicy.model import Operator

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from slim.plugins.policy.networkpolicy.model import Selector

Bits: TypeAlias = int
"""A set of numbers; bit i stands for i."""

Packed: TypeAlias = "tuple[int, ...] | Bits"
"""A few numbers, or a set: ten thousand sets of one number each are not worth as many bits."""
FEW = 16


def bits_of(numbers: Iterable[int]) -> Bits:
    """Made in one piece: setting one bit of a long integer copies it."""
    ordered = sorted(numbers)
    if not ordered:
        return 0
    raw = bytearray((ordered[-1] >> 3) + 1)
    for number in ordered:
        raw[number >> 3] |= 1 << (number & 7)
    return int.from_bytes(raw, "little")


def pack(numbers: Iterable[int]) -> Packed:
    found = tuple(numbers)
    return found if len(found) <= FEW else bits_of(found)


def unpack(packed: Packed) -> Bits:
    if isinstance(packed, int):
        return packed
    bits = 0
    for number in packed:
        bits |= 1 << number
    return bits


def lowest(bits: Bits) -> int:
    """The smallest number of a set that is not empty."""
    return (bits & -bits).bit_length() - 1


@dataclass(slots=True)
class _Needs:
    """One selector, its requirements taken together key by key."""

    values: dict[str, frozenset[str]] = field(default_factory=dict)
    """The key must have one of these."""
    keys: set[str] = field(default_factory=set)
    """Keys that must be there, those of `values` included."""
    refused: dict[str, frozenset[str]] = field(default_factory=dict)
    absent: set[str] = field(default_factory=set)


def _needs(selector: Selector) -> _Needs | None:
    """None if no labels can satisfy it."""
    needs = _Needs()
    for each in selector.requirements:
        match each.operator:
            case Operator.IN:
                needs.keys.add(each.key)
                known = needs.values.get(each.key, each.values)
                needs.values[each.key] = known & each.values
            case Operator.NOT_IN:
                # Also matches when the key is absent (apimachinery labels.Requirement.Matches).
                needs.refused[each.key] = needs.refused.get(each.key, frozenset()) | each.values
            case Operator.EXISTS:
                needs.keys.add(each.key)
            case Operator.DOES_NOT_EXIST:
                needs.absent.add(each.key)
    if needs.keys & needs.absent or not all(needs.values.values()):
        return None
    return needs


@dataclass(slots=True)
class _Key:
    """What selectors want of one key that is there."""

    wanting: Packed = 0
    """Those that want certain values."""
    by_value: dict[str, Packed] = field(default_factory=dict)
    refusing: dict[str, Packed] = field(default_factory=dict)
    """Value -> those that do not want it."""
    unwanted: Packed = 0
    """Those that want the key to be absent."""


class LabelIndex:
    """Selectors by number."""

    def __init__(self, selectors: Mapping[int, Selector]) -> None:
        wanted = {number: _needs(selector) for number, selector in selectors.items()}
        needs = {number: each for number, each in wanted.items() if each is not None}
        self._always = bits_of(number for number, each in needs.items() if not each.keys)
        self._by_rarest = _by_rarest_key(needs)
        self._keys = _by_key(needs)

    def matching(self, labels: Mapping[str, str]) -> Bits:
        """The numbers of the selectors that these labels satisfy."""
        have, bad = self._always, 0
        for key, value in labels.items():
            for others, members in self._by_rarest.get(key, ()):
                if others <= labels.keys():
                    have |= unpack(members)
            known = self._keys.get(key)
            if known is not None:
                bad |= unpack(known.unwanted) | unpack(known.refusing.get(value, 0))
                if known.wanting:
                    bad |= unpack(known.wanting) & ~unpack(known.by_value.get(value, 0))
        return have & ~bad


def _by_rarest_key(
    needs: dict[int, _Needs],
) -> dict[str, list[tuple[frozenset[str], Packed]]]:
    """Sets of keys that must be there, each under the one of them that fewest selectors need."""
    frequency = Counter(key for each in needs.values() for key in each.keys)
    by_keys: dict[frozenset[str], list[int]] = defaultdict(list)
    for number, each in needs.items():
        if each.keys:
            by_keys[frozenset(each.keys)].append(number)
    found: dict[str, list[tuple[frozenset[str], Packed]]] = defaultdict(list)
    for keys, numbers in by_keys.items():
        rarest = min(keys, key=lambda key: (frequency[key], key))
        found[rarest].append((keys, pack(numbers)))
    return dict(found)


def _by_key(needs: dict[int, _Needs]) -> dict[str, _Key]:
    wanting: dict[str, list[int]] = defaultdict(list)
    by_value: dict[tuple[str, str], list[int]] = defaultdict(list)
    refusing: dict[tuple[str, str], list[int]] = defaultdict(list)
    unwanted: dict[str, list[int]] = defaultdict(list)
    for number, each in needs.items():
        for key, values in each.values.items():
            wanting[key].append(number)
            for value in values:
                by_value[key, value].append(number)
        for key, values in each.refused.items():
            for value in values:
                refusing[key, value].append(number)
        for key in each.absent:
            unwanted[key].append(number)
    keys: dict[str, _Key] = defaultdict(_Key)
    for key, numbers in wanting.items():
        keys[key].wanting = pack(numbers)
    for key, numbers in unwanted.items():
        keys[key].unwanted = pack(numbers)
    for (key, value), numbers in by_value.items():
        keys[key].by_value[value] = pack(numbers)
    for (key, value), numbers in refusing.items():
        keys[key].refusing[value] = pack(numbers)
    return dict(keys)
