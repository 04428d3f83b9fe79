"""The ring in a memfd through which traps tells of connections."""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING

import pytest

from slim.broker.news_ring import Entry, NewsRing

if TYPE_CHECKING:
    from collections.abc import Iterator

SLOTS = 4


@pytest.fixture
def writer() -> Iterator[NewsRing]:
    ring = NewsRing.create("slim-test", slot_bytes=64, slots=SLOTS)
    yield ring
    ring.close()


@pytest.fixture
def reader(writer: NewsRing) -> Iterator[NewsRing]:
    ring = NewsRing(os.dup(writer.fileno()))
    yield ring
    ring.close()


def test_what_is_written_is_read_once_and_in_order(writer: NewsRing, reader: NewsRing) -> None:
    writer.write(7, b"one")
    writer.write(8, b"two")
    assert reader.read(10) == ([Entry(7, b"one"), Entry(8, b"two")], 0)
    assert reader.read(10) == ([], 0)


def test_a_reader_takes_no_more_than_it_asks_for(writer: NewsRing, reader: NewsRing) -> None:
    for number in range(3):
        writer.write(number, b"")
    assert [entry.took_us for entry in reader.read(2)[0]] == [0, 1]
    assert [entry.took_us for entry in reader.read(2)[0]] == [2]


def test_a_slow_reader_has_the_newest_and_knows_how_many_it_missed(
    writer: NewsRing, reader: NewsRing
) -> None:
    for number in range(11):
        writer.write(number, b"")
    entries, lost = reader.read(10)
    assert ([entry.took_us for entry in entries], lost) == ([7, 8, 9, 10], 7)
    assert reader.read(10) == ([], 0)


def test_every_entry_is_read_or_counted_whatever_the_rhythm(
    writer: NewsRing, reader: NewsRing
) -> None:
    read = missing = written = 0
    for burst in (1, 3, 9, 4, 5, 2, 40, 1):
        for _ in range(burst):
            writer.write(0, b"x")
            written += 1
        entries, lost = reader.read(3)
        read, missing = read + len(entries), missing + lost
    while reader.seen < reader.written:
        entries, lost = reader.read(3)
        read, missing = read + len(entries), missing + lost
    assert read + missing == written == reader.written


def test_what_does_not_fit_is_counted_as_lost(writer: NewsRing, reader: NewsRing) -> None:
    writer.write(1, b"x" * 48)
    writer.write(1, b"x" * 49)
    assert reader.read(10) == ([Entry(1, b"x" * 48)], 1)


def test_a_slot_that_was_being_written_is_lost_not_read(writer: NewsRing, reader: NewsRing) -> None:
    writer.write(1, b"whole")
    writer.write(2, b"half")
    # A writer that died between clearing the number and writing it anew.
    os.pwrite(writer.fileno(), struct.pack("<Q", 0), 64 + 64)
    assert reader.read(10) == ([Entry(1, b"whole")], 1)


def test_a_successor_goes_on_where_its_predecessor_was(writer: NewsRing, reader: NewsRing) -> None:
    writer.write(1, b"")
    reader.read(10)
    next_writer = NewsRing(os.dup(writer.fileno()))
    next_writer.write(2, b"")
    next_reader = NewsRing(os.dup(writer.fileno()))
    assert next_reader.read(10) == ([Entry(2, b"")], 0)
    next_writer.close()
    next_reader.close()


def test_another_memfd_is_refused() -> None:
    fd = os.memfd_create("slim-test")
    os.ftruncate(fd, 4096)
    with pytest.raises(ValueError, match="not a news ring"):
        NewsRing(fd)
    os.close(fd)
