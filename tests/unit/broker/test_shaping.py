"""Limits: how several combine, what of them is sense, how people write and read them."""

from __future__ import annotations

import random

import pytest

from slim.broker.shaping import (
    MAX_RATE,
    MIN_RATE,
    Shaping,
    find_mistake,
    format_duration,
    format_rate,
    format_size,
    parse_dscp,
    parse_duration,
    parse_rate,
    parse_size,
    strictest,
)


@pytest.fixture
def choose() -> random.Random:
    return random.Random(4)


def test_the_smallest_number_of_each_kind_holds_in_any_order(choose: random.Random) -> None:
    names = Shaping.__struct_fields__
    for _ in range(500):
        shapings = [
            Shaping(**{name: choose.choice([None, choose.randint(0, 99)]) for name in names})
            for _ in range(choose.randint(0, 5))
        ]
        combined = strictest(shapings) or Shaping()
        for name in names:
            there = [value for each in shapings if (value := getattr(each, name)) is not None]
            assert getattr(combined, name) == min(there, default=None)


def test_nothing_is_limited_by_none_and_by_empty_limits() -> None:
    assert strictest([]) is None
    assert strictest([None, Shaping()]) is None


def test_zero_is_a_limit_where_it_is_a_value() -> None:
    assert strictest([Shaping(dscp=0), Shaping(dscp=8), Shaping(priority=0)]) == Shaping(
        dscp=0, priority=0
    )


@pytest.mark.parametrize(
    ("text", "rate"),
    [("8kbit", 1_000), ("200mbit", 25_000_000), ("1gbit", 125_000_000), ("64000bit", 8_000)],
)
def test_a_rate_is_in_bits_and_becomes_bytes(text: str, rate: int) -> None:
    assert parse_rate(text) == rate


@pytest.mark.parametrize(
    ("text", "size"),
    [("1B", 1), ("5GiB", 5 << 30), ("5GB", 5 * 10**9), ("10kB", 10_000), ("3TiB", 3 << 40)],
)
def test_a_size_tells_powers_of_1000_from_those_of_1024(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("text", "seconds"), [("30s", 30), ("10m", 600), ("8h", 28_800), ("2d", 172_800)]
)
def test_a_duration(text: str, seconds: int) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(("text", "value"), [("ef", 46), ("af21", 18), ("cs1", 8), ("63", 63)])
def test_a_dscp_is_a_name_or_a_number(text: str, value: int) -> None:
    assert parse_dscp(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        "200",
        "mbit",
        "200 mbit",
        "-1mbit",
        "1.5gbit",
        "200MBIT",
        "7kbit",
        "500gbit",
        "200mbyte",
        "9" * 40 + "bit",
        "\u0661mbit",
    ],
)
def test_what_is_no_rate(text: str) -> None:
    with pytest.raises(ValueError, match="not"):
        parse_rate(text)


@pytest.mark.parametrize("text", ["", "5", "5gib", "5G", "0B", "999999999999TiB", "5GiB "])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="not"):
        parse_size(text)


@pytest.mark.parametrize("text", ["", "10", "0s", "10min", "1y", "999999999999d", "1h30m"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="not"):
        parse_duration(text)


@pytest.mark.parametrize("text", ["", "64", "-1", "af15", "AF21", "007"])
def test_what_is_no_dscp(text: str) -> None:
    with pytest.raises(ValueError, match="none of"):
        parse_dscp(text)


def test_a_printed_value_reads_as_the_same(choose: random.Random) -> None:
    for _ in range(500):
        rate = int(10 ** choose.uniform(3, 10.6))
        assert parse_rate(format_rate(rate)) == rate
        size = int(10 ** choose.uniform(0, 11))
        assert parse_size(format_size(size)) == size
        seconds = int(10 ** choose.uniform(0, 7))
        assert parse_duration(format_duration(seconds)) == seconds


def test_limits_are_described_in_units() -> None:
    shaping = Shaping(send=25_000_000, dscp=0, quota=5 << 30, idle_s=600)
    assert shaping.describe() == "send 200mbit, dscp 0, quota 5GiB, idle 10m"
    assert Shaping().describe() == ""


@pytest.mark.parametrize(
    "shaping",
    [
        Shaping(send=0),
        Shaping(send=MIN_RATE - 1),
        Shaping(receive=MAX_RATE + 1),
        Shaping(dscp=64),
        Shaping(priority=7),
        Shaping(quota=0),
        Shaping(lifetime_s=-1),
        Shaping(idle_s=True),
        Shaping(send="200mbit"),  # type: ignore[arg-type]
        "200mbit",
    ],
)
def test_limits_that_make_no_sense_are_found(shaping: object) -> None:
    assert find_mistake(shaping)


def test_limits_that_make_sense() -> None:
    assert find_mistake(Shaping()) == ""
    assert find_mistake(Shaping(send=MIN_RATE, dscp=0, priority=6, quota=1, idle_s=1)) == ""
