"""The verdict of the benchmark: medians of paired ratios, their interval, and the bar."""

from __future__ import annotations

import random

import pytest
from bench.statistics import Estimate, Verdict, estimate, judge, paired_ratios


def make_estimate(low: float, high: float, *, rounds: int = 20) -> Estimate:
    return Estimate(median=(low + high) / 2, low=low, high=high, rounds=rounds)


def noisy(center: float, spread: float, count: int) -> list[float]:
    generator = random.Random(7)
    return [center * generator.gauss(1, spread) for _ in range(count)]


def test_ratios_pair_the_rounds_in_order() -> None:
    assert paired_ratios([2.0, 9.0], [1.0, 3.0]) == [2.0, 3.0]


def test_rounds_that_do_not_pair_are_refused() -> None:
    with pytest.raises(ValueError, match="2 rounds against 1"):
        paired_ratios([1.0, 2.0], [1.0])


@pytest.mark.parametrize("bad", [0.0, -1.0])
def test_values_that_are_not_positive_are_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="positive"):
        paired_ratios([1.0], [bad])


def test_pairing_cancels_what_slows_both_down() -> None:
    load = [1.0, 0.4, 0.7, 0.2, 0.9]
    ratios = paired_ratios([1.5 * part for part in load], load)
    result = estimate(ratios)
    assert result.low == pytest.approx(1.5)
    assert result.high == pytest.approx(1.5)


def test_estimate_is_the_median_and_not_the_mean() -> None:
    assert estimate([1.0, 1.0, 1.0, 1.0, 100.0]).median == 1.0


def test_estimate_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no rounds"):
        estimate([])


def test_same_rounds_give_the_same_interval() -> None:
    ratios = noisy(1.0, 0.05, 12)
    assert estimate(ratios) == estimate(ratios)


def test_interval_does_not_depend_on_the_order_of_magnitude() -> None:
    ratios = noisy(1.0, 0.05, 20)
    small, large = estimate(ratios), estimate([1000 * ratio for ratio in ratios])
    assert large.low == pytest.approx(1000 * small.low)
    assert large.width == pytest.approx(small.width)


def test_interval_narrows_with_more_rounds() -> None:
    assert estimate(noisy(1.0, 0.05, 60)).width < estimate(noisy(1.0, 0.05, 10)).width


def test_interval_holds_the_true_median_about_as_often_as_it_says() -> None:
    generator = random.Random(3)
    trials = 200
    hits = 0
    for _ in range(trials):
        ratios = [generator.gauss(1.0, 0.05) for _ in range(20)]
        result = estimate(ratios, resamples=400)
        hits += result.low <= 1.0 <= result.high
    assert 0.89 <= hits / trials <= 0.99


def test_bar_below_the_interval_holds() -> None:
    assert judge(make_estimate(0.98, 0.99), 0.97) is Verdict.HOLDS


def test_bar_at_the_low_end_of_the_interval_holds() -> None:
    assert judge(make_estimate(0.97, 0.98), 0.97) is Verdict.HOLDS


def test_bar_above_the_interval_fails() -> None:
    assert judge(make_estimate(0.95, 0.96), 0.97) is Verdict.FAILS


def test_bar_inside_the_interval_is_undecided() -> None:
    assert judge(make_estimate(0.965, 0.975), 0.97) is Verdict.UNDECIDED


def test_wide_interval_decides_if_all_of_it_lies_on_one_side_of_the_bar() -> None:
    assert judge(make_estimate(1.4, 1.6), 1.3) is Verdict.HOLDS
    assert judge(make_estimate(1.0, 1.2), 1.3) is Verdict.FAILS
    assert judge(make_estimate(1.2, 1.4), 1.3) is Verdict.UNDECIDED


def test_width_is_relative_to_the_median() -> None:
    assert make_estimate(1.98, 2.01).is_narrow()
    assert not make_estimate(0.48, 0.51).is_narrow()


def test_two_rounds_that_agree_prove_nothing() -> None:
    assert not estimate([1.0, 1.0]).is_narrow()
    assert judge(estimate([1.0, 1.0]), 0.5) is Verdict.UNDECIDED
