"""Many selectors at once give what each gives alone, and cost what few do."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from slim.plugins.policy.networkpolicy.labels import (
    FEW,
    LabelIndex,
    bits_of,
    lowest,
    pack,
    unpack,
)
from slim.plugins.policy.networkpolicy.model import Operator, Requirement, Selector
from support.policy_specification import selects
from support.policy_strategies import labels, selectors


@settings(deadline=None)
@given(st.dictionaries(st.integers(0, 200), selectors, max_size=60), labels)
def test_an_index_matches_what_each_selector_does(
    by_number: dict[int, Selector], given_labels: dict[str, str]
) -> None:
    expected = {number for number, each in by_number.items() if selects(each, given_labels)}
    assert LabelIndex(by_number).matching(given_labels) == bits_of(expected)


@given(st.sets(st.integers(0, 5000), max_size=3 * FEW))
def test_packing_keeps_the_numbers(numbers: set[int]) -> None:
    assert unpack(pack(numbers)) == bits_of(numbers) == sum(1 << number for number in numbers)


@given(st.sets(st.integers(0, 5000), min_size=1))
def test_the_lowest_is_the_smallest(numbers: set[int]) -> None:
    assert lowest(bits_of(numbers)) == min(numbers)


def test_keys_that_the_asker_does_not_have_are_not_looked_at() -> None:
    """Ten thousand selectors, each for a key of its own."""
    many = {
        number: Selector((Requirement(f"key-{number}", Operator.EXISTS),))
        for number in range(10_000)
    }
    index = LabelIndex(many)

    class Counted(dict[str, str]):
        asked = 0

        def keys(self) -> object:  # type: ignore[override]
            self.asked += 1
            return super().keys()

    own = Counted({"key-7": "", "other": ""})
    assert index.matching(own) == 1 << 7
    assert own.asked == 1
