"""Records in a memfd: written by one process, read by others and by its successor."""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING

import pytest

from slim.broker.slots import SlotStore, key_of

if TYPE_CHECKING:
    from collections.abc import Iterator

SLOT_BYTES = 64
ROOM = SLOT_BYTES - 20


@pytest.fixture
def store() -> Iterator[SlotStore]:
    store = SlotStore.create("slim-test", slot_bytes=SLOT_BYTES, slots=3)
    yield store
    store.close()


def key(number: int) -> bytes:
    return key_of(1, number)


def reopened(store: SlotStore, *, writable: bool = True) -> SlotStore:
    """The store as a successor or a reader finds it."""
    return SlotStore(os.dup(store.fileno()), writable=writable)


def test_what_was_put_is_found(store: SlotStore) -> None:
    assert store.put(key(1), b"one")
    assert store.put(key(2), b"")
    assert dict(store.items()) == {key(1): b"one", key(2): b""}
    assert key(1) in store
    assert key(3) not in store
    assert len(store) == 2


def test_putting_again_overwrites_in_place(store: SlotStore) -> None:
    for payload in (b"a longer first one", b"short", b"", b"x" * ROOM):
        assert store.put(key(1), payload)
        assert [*store.items()] == [(key(1), payload)]
    assert len(store) == 1


def test_what_does_not_fit_is_refused_and_changes_nothing(store: SlotStore) -> None:
    store.put(key(1), b"one")
    assert not store.put(key(1), b"x" * (ROOM + 1))
    assert not store.put(b"short key", b"")
    assert [*store.items()] == [(key(1), b"one")]


def test_a_full_store_refuses_until_something_is_deleted(store: SlotStore) -> None:
    for number in range(3):
        assert store.put(key(number), b"x")
    assert not store.put(key(3), b"x")
    assert store.put(key(1), b"overwriting goes on")
    store.delete(key(0))
    assert store.put(key(3), b"y")
    assert len(store) == 3
    assert key(0) not in dict(store.items())


def test_deleting_what_is_not_there_is_no_error(store: SlotStore) -> None:
    store.delete(key(9))
    store.put(key(1), b"x")
    store.delete(key(1))
    store.delete(key(1))
    assert [*store.items()] == []
    assert len(store) == 0


def test_a_successor_finds_everything_and_goes_on(store: SlotStore) -> None:
    store.put(key(1), b"one")
    store.put(key(2), b"two")
    store.delete(key(1))
    successor = reopened(store)
    assert dict(successor.items()) == {key(2): b"two"}
    assert len(successor) == 1
    for number in (3, 4):
        assert successor.put(key(number), b"x")
    assert not successor.put(key(5), b"x")
    assert set(dict(store.items())) == {key(2), key(3), key(4)}
    successor.close()


def test_a_reader_sees_what_the_writer_does_and_cannot_write(store: SlotStore) -> None:
    reader = reopened(store, writable=False)
    store.put(key(1), b"one")
    assert [*reader.items()] == [(key(1), b"one")]
    with pytest.raises(TypeError):
        reader.put(key(2), b"two")
    reader.close()


def test_a_writer_that_died_half_way_leaves_an_empty_slot(store: SlotStore) -> None:
    store.put(key(1), b"one")
    store.put(key(2), b"two")
    # The length is cleared first and written last.
    os.pwrite(store.fileno(), bytes(4), SLOT_BYTES)
    successor = reopened(store)
    assert [*successor.items()] == [(key(2), b"two")]
    assert successor.put(key(3), b"in the empty one")
    assert successor.put(key(4), b"in a new one")
    assert not successor.put(key(5), b"")
    successor.close()


@pytest.mark.parametrize("length", [1, 15, SLOT_BYTES - 3, 0xFFFFFFFF])
def test_a_senseless_length_is_no_record(store: SlotStore, length: int) -> None:
    store.put(key(1), b"one")
    os.pwrite(store.fileno(), struct.pack("<I", length), SLOT_BYTES)
    assert [*store.items()] == []


def test_a_high_water_mark_beyond_the_end_is_bounded(store: SlotStore) -> None:
    store.put(key(1), b"one")
    os.pwrite(store.fileno(), struct.pack("<I", 0xFFFFFFFF), 12)
    successor = reopened(store)
    assert [*successor.items()] == [(key(1), b"one")]
    successor.close()


def test_unused_slots_take_no_memory() -> None:
    store = SlotStore.create("slim-test", slot_bytes=4096, slots=10_000)
    store.put(key(1), b"x")
    assert [*store.items()]
    assert os.fstat(store.fileno()).st_blocks * 512 < 1 << 20
    store.close()


@pytest.mark.parametrize(
    "header",
    [
        b"else" + struct.pack("<III", 64, 3, 0),
        b"slt1" + struct.pack("<III", 64, 4, 0),
        b"slt1" + struct.pack("<III", 16, 15, 0),
    ],
    ids=["magic", "size", "slot size"],
)
def test_a_memfd_of_another_kind_is_refused(header: bytes) -> None:
    fd = os.memfd_create("slim-test", os.MFD_CLOEXEC)
    os.pwrite(fd, header.ljust(256, b"\0"), 0)
    with pytest.raises(ValueError, match="not a slot store"):
        SlotStore(fd, writable=True)
    os.close(fd)


def test_keys_of_different_kinds_differ() -> None:
    assert len({key_of(kind, number) for kind in (1, 2) for number in (1, 2)}) == 4
    assert len(key_of(1, (1 << 64) - 1)) == 16
