"""How verdicts combine."""

from __future__ import annotations

import itertools

import pytest

from slim.broker.decisions import DEFAULT_VERDICT, Verdict, combine, is_audited
from slim.broker.shaping import Shaping

ALLOW_A = Verdict(True, "a:allow")
ALLOW_B = Verdict(True, "b:allow")
DENY_C = Verdict(False, "c:deny")
DENY_D = Verdict(False, "d:deny")


@pytest.mark.parametrize("order", [*itertools.permutations([ALLOW_A, ALLOW_B, DENY_C, DENY_D])])
def test_a_deny_wins_and_the_first_by_rule_is_named_in_any_order(
    order: tuple[Verdict, ...],
) -> None:
    assert combine(order) == DENY_C


@pytest.mark.parametrize("order", [*itertools.permutations([ALLOW_B, ALLOW_A])])
def test_of_allows_the_first_by_rule_is_named(order: tuple[Verdict, ...]) -> None:
    assert combine(order) == ALLOW_A


def test_among_allows_what_is_open_comes_before_what_is_audited_before_the_others() -> None:
    provisional = Verdict(True, "y:open", provisional=True)
    audited = Verdict(True, "z:watched", audit=True)
    for order in itertools.permutations([ALLOW_A, audited, provisional]):
        assert combine(order) == provisional
    assert combine([ALLOW_A, audited]) == audited
    assert combine([audited, DENY_C]) == DENY_C


def test_the_text_of_an_audited_verdict_is_recognised_and_bounded() -> None:
    audited = Verdict(True, "z" * 80, audit=True)
    assert is_audited(audited.text)
    assert len(audited.text) == 80
    assert not is_audited(ALLOW_A.text)
    assert ALLOW_A.text == "a:allow"


def test_without_a_verdict_the_default_decides() -> None:
    assert combine([]) == DEFAULT_VERDICT
    assert combine([], default=DENY_C) == DENY_C


def test_the_default_is_allow_and_never_outweighs_a_verdict() -> None:
    assert DEFAULT_VERDICT.allow
    assert combine([DENY_D], default=ALLOW_A) == DENY_D
    assert combine([ALLOW_B], default=DENY_C) == ALLOW_B


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_limits_of_all_verdicts_hold_and_a_demand_for_encryption_stays(
    order: tuple[int, int],
) -> None:
    verdicts = [
        Verdict(True, "a:slow", shaping=Shaping(send=2_000, quota=5)),
        Verdict(True, "b:slower", shaping=Shaping(send=1_000, idle_s=9), encrypt=True),
    ]
    combined = combine(verdicts[number] for number in order)
    assert combined.rule == "b:slower"
    assert combined.shaping == Shaping(send=1_000, quota=5, idle_s=9)
    assert combined.encrypt


def test_a_deny_has_no_limits_of_others() -> None:
    limited = Verdict(True, "a:slow", shaping=Shaping(send=2_000))
    assert combine([limited, DENY_C]) == DENY_C
