"""Identities of sources: kept in shared memory, changes noticed, never another's."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from slim.broker.decisions import Identity
from slim.broker.endpoints import packed16, parse_address
from slim.broker.slots import SlotStore
from slim.broker.sources import SLOT_BYTES, Sources
from support.brokering import make_sources

if TYPE_CHECKING:
    from collections.abc import Iterator

WEB = Identity("web", "shop", {"app": "web"})
DB = Identity("db", "shop", {"app": "db"})


def at(number: int) -> bytes:
    return packed16(parse_address(f"10.1.0.{number}"))


@pytest.fixture
def store() -> Iterator[SlotStore]:
    made = SlotStore.create("test", slot_bytes=SLOT_BYTES, slots=4)
    yield made
    made.close()


def successor(store: SlotStore) -> Sources:
    return Sources(SlotStore(os.dup(store.fileno()), writable=True))


def test_only_a_change_is_reported() -> None:
    sources = make_sources()
    assert not sources.remember("b", at(1), WEB)
    assert not sources.remember("b", at(1), Identity("web", "shop", {"app": "web"}))
    assert sources.remember("b", at(1), DB)
    assert sources.get("b", at(1)) == DB
    sources.close()


def test_the_same_address_at_another_host_is_another_source() -> None:
    sources = make_sources()
    sources.remember("b", at(1), WEB)
    assert sources.get("c", at(1)) is None
    sources.close()


def test_a_successor_knows_what_was_remembered_last(store: SlotStore) -> None:
    first = Sources(store)
    first.remember("b", at(1), WEB)
    first.remember("b", at(2), WEB)
    first.remember("b", at(2), DB)
    second = successor(store)
    assert (second.get("b", at(1)), second.get("b", at(2))) == (WEB, DB)
    second.close()


def test_the_source_asked_for_longest_ago_makes_room(store: SlotStore) -> None:
    sources = Sources(store)
    for number in range(1, 5):
        sources.remember("b", at(number), WEB)
    sources.remember("b", at(1), WEB)
    sources.remember("b", at(9), DB)
    second = successor(store)
    for table in (sources, second):
        assert table.get("b", at(2)) is None
        assert table.get("b", at(1)) == WEB
        assert table.get("b", at(9)) == DB
        assert len(table) == 4
    second.close()


def test_labels_too_long_to_keep_are_known_to_this_process_and_never_the_old_ones(
    store: SlotStore,
) -> None:
    sources = Sources(store)
    sources.remember("b", at(1), WEB)
    large = Identity("web", "shop", {str(number): "x" * 100 for number in range(30)})
    assert sources.remember("b", at(1), large)
    assert sources.get("b", at(1)) == large
    second = successor(store)
    assert second.get("b", at(1)) is None
    second.close()
