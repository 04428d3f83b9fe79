"""Replay windows: every nonce once, also across restarts, within bounded memory."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from slim.broker.admission.replay import PREFIXES_PER_PEER, WINDOW, ReplayWindows

if TYPE_CHECKING:
    from collections.abc import Iterator

LIFETIME_S = 100.0
NOW = 1000.0
PREFIX = b"prefix01"


@pytest.fixture
def windows() -> Iterator[ReplayWindows]:
    windows = ReplayWindows.create(windows=20, lifetime_s=LIFETIME_S)
    yield windows
    windows.close()


def prefix(number: int) -> bytes:
    return number.to_bytes(8, "big")


def reopened(windows: ReplayWindows) -> ReplayWindows:
    return ReplayWindows(os.dup(windows.fileno()), lifetime_s=LIFETIME_S)


def test_a_nonce_is_admitted_once(windows: ReplayWindows) -> None:
    for counter in (0, 1, 2, 70_000, 69_999, 4_000_000_000):
        assert windows.admit("b", PREFIX, counter, NOW)
        assert not windows.admit("b", PREFIX, counter, NOW)


def test_order_does_not_matter_within_the_window(windows: ReplayWindows) -> None:
    counters = [5, 3, 9, 1, 8, 2, 7, 4, 6]
    assert all(windows.admit("b", PREFIX, counter, NOW) for counter in counters)
    assert not any(windows.admit("b", PREFIX, counter, NOW) for counter in counters)


def test_what_fell_out_of_the_window_is_refused(windows: ReplayWindows) -> None:
    assert windows.admit("b", PREFIX, 1, NOW)
    assert windows.admit("b", PREFIX, 1 + WINDOW, NOW)
    assert not windows.admit("b", PREFIX, 1, NOW)
    assert windows.admit("b", PREFIX, 2, NOW)


def test_the_window_moves_on_bit_by_bit(windows: ReplayWindows) -> None:
    first = WINDOW - 5
    for counter in range(first, first + 10):
        assert windows.admit("b", PREFIX, counter, NOW)
    for counter in range(first, first + 10):
        assert not windows.admit("b", PREFIX, counter, NOW)
    # Same bits one window later: they were cleared on the way.
    for counter in range(first + WINDOW, first + WINDOW + 10):
        assert windows.admit("b", PREFIX, counter, NOW)


def test_a_leap_of_more_than_a_window_clears_everything(windows: ReplayWindows) -> None:
    for counter in range(10):
        windows.admit("b", PREFIX, counter, NOW)
    assert windows.admit("b", PREFIX, 3 * WINDOW + 9, NOW)
    for counter in range(3 * WINDOW, 3 * WINDOW + 9):
        assert windows.admit("b", PREFIX, counter, NOW)


def test_peers_and_prefixes_have_windows_of_their_own(windows: ReplayWindows) -> None:
    for peer in ("b", "c"):
        for number in (1, 2):
            assert windows.admit(peer, prefix(number), 1, NOW)
            assert not windows.admit(peer, prefix(number), 1, NOW)


def test_a_successor_remembers(windows: ReplayWindows) -> None:
    for counter in (1, 2, WINDOW):
        windows.admit("b", PREFIX, counter, NOW)
    successor = reopened(windows)
    for counter in (1, 2, WINDOW):
        assert not successor.admit("b", PREFIX, counter, NOW)
    assert successor.admit("b", PREFIX, 3, NOW)
    assert not windows.admit("b", PREFIX, 3, NOW)
    successor.close()


def test_too_many_prefixes_of_one_peer_are_refused(windows: ReplayWindows) -> None:
    for number in range(PREFIXES_PER_PEER):
        assert windows.admit("b", prefix(number), 1, NOW)
    assert not windows.admit("b", prefix(99), 1, NOW)
    assert windows.admit("c", prefix(99), 1, NOW)
    successor = reopened(windows)
    assert not successor.admit("b", prefix(99), 1, NOW)
    successor.close()


def test_a_prefix_is_forgotten_only_when_no_key_can_still_open_its_records(
    windows: ReplayWindows,
) -> None:
    for number in range(PREFIXES_PER_PEER):
        assert windows.admit("b", prefix(number), 1, NOW)
    assert not windows.admit("b", prefix(99), 1, NOW + LIFETIME_S)
    assert windows.admit("b", prefix(99), 1, NOW + LIFETIME_S + 1)


def test_using_a_prefix_keeps_it(windows: ReplayWindows) -> None:
    for number in range(PREFIXES_PER_PEER):
        windows.admit("b", prefix(number), 1, NOW)
    windows.admit("b", prefix(0), 2, NOW + LIFETIME_S)
    windows.admit("b", prefix(99), 1, NOW + LIFETIME_S + 1)
    assert not windows.admit("b", prefix(0), 1, NOW + LIFETIME_S + 1)


def test_a_full_table_refuses_until_something_expired(windows: ReplayWindows) -> None:
    for number in range(20):
        assert windows.admit(f"peer-{number}", PREFIX, 1, NOW)
    assert not windows.admit("another", PREFIX, 1, NOW)
    later = NOW + LIFETIME_S + 1
    assert windows.admit("another", PREFIX, 1, later)
    assert not windows.admit("another", PREFIX, 1, later)


def test_a_reused_window_is_empty(windows: ReplayWindows) -> None:
    for number in range(20):
        windows.admit(f"peer-{number}", PREFIX, 7, NOW)
    later = NOW + LIFETIME_S + 1
    for number in range(20):
        assert windows.admit(f"new-{number}", PREFIX, 7, later)
    successor = reopened(windows)
    for number in range(20):
        assert not successor.admit(f"new-{number}", PREFIX, 7, later)
    successor.close()


def test_a_window_that_was_released_is_free_for_a_successor(windows: ReplayWindows) -> None:
    for number in range(20):
        windows.admit(f"peer-{number}", PREFIX, 7, NOW)
    later = NOW + LIFETIME_S + 1
    windows.admit("new", PREFIX, 7, later)
    successor = reopened(windows)
    assert not successor.admit("new", PREFIX, 7, later)
    assert successor.admit("newer", PREFIX, 7, later)
    successor.close()


def test_a_clock_that_restarted_forgets_what_lies_ahead(windows: ReplayWindows) -> None:
    for number in range(PREFIXES_PER_PEER):
        windows.admit("b", prefix(number), 1, NOW)
    assert windows.admit("b", prefix(99), 1, 5.0)


def test_unused_windows_take_no_memory() -> None:
    windows = ReplayWindows.create(windows=1024, lifetime_s=LIFETIME_S)
    windows.admit("b", PREFIX, 1, NOW)
    assert os.fstat(windows.fileno()).st_blocks * 512 < 1 << 20
    windows.close()
