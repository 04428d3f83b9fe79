"""Connection records: by cookie, in shared memory, until the socket is gone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest

from slim.broker.connections import (
    KIND_CONNECTION,
    MAX_TEXT,
    SLOT_BYTES,
    ConnectionRecord,
    ConnectionTable,
    pack,
    read_limited,
    read_records,
)
from slim.broker.endpoints import Endpoint
from slim.broker.shaping import Shaping
from slim.broker.slots import SlotStore, key_of

if TYPE_CHECKING:
    from collections.abc import Iterator

LOCAL = Endpoint.parse("10.1.0.1:40000")
REMOTE = Endpoint.parse("[fd00:1::2]:5432")
HOST = Endpoint.parse("192.0.2.2:20001")


def record(cookie: int = 1, **changes: object) -> ConnectionRecord:
    made = ConnectionRecord(
        cookie=cookie,
        workload=77,
        direction="out",
        local=pack(LOCAL),
        peer=pack(REMOTE),
        host_peer=pack(HOST),
        peer_host="b",
        path="fast",
        reason="",
        rule="default",
        pid=1,
        created=0.0,
    )
    return msgspec.structs.replace(made, **changes)


@pytest.fixture
def store() -> Iterator[SlotStore]:
    store = SlotStore.create("slim-test", slot_bytes=SLOT_BYTES, slots=4)
    yield store
    store.close()


def test_a_record_gives_its_endpoints_back() -> None:
    assert record().local_endpoint() == LOCAL
    assert record().peer_endpoint() == REMOTE
    assert record().host_endpoint() == HOST
    assert record(host_peer=pack(None)).host_endpoint() is None


def test_the_longest_record_fits_a_slot(store: SlotStore) -> None:
    longest = record(
        cookie=(1 << 64) - 1,
        workload=(1 << 64) - 1,
        peer_host="h" * 63,
        reason="r" * MAX_TEXT,
        rule="r" * MAX_TEXT,
        pid=1 << 22,
        created=1e18,
    )
    table = ConnectionTable(store)
    table.add(longest)
    assert table.overflowed == 0
    assert [*read_records(store)] == [longest]


@pytest.mark.parametrize("path", ["fallback", "denied"])
def test_only_fast_connections_are_sockets_of_ours(store: SlotStore, path: str) -> None:
    table = ConnectionTable(store)
    table.add(record(1))
    table.add(record(2, path=path))
    assert table.get(1) == record(1)
    assert table.get(2) is None
    assert len(table) == 1
    assert {each.cookie for each in read_records(store)} == {1, 2}


def test_a_successor_knows_the_fast_ones(store: SlotStore) -> None:
    first = ConnectionTable(store)
    first.add(record(1))
    first.add(record(2, path="denied"))
    successor = ConnectionTable(store)
    assert successor.get(1) == record(1)
    assert len(successor) == 1


def test_forgetting(store: SlotStore) -> None:
    table = ConnectionTable(store)
    for cookie, workload in ((1, 77), (2, 77), (3, 78)):
        table.add(record(cookie, workload=workload))
    table.forget(1)
    table.forget(1)
    assert table.get(1) is None
    table.forget_workload(77)
    assert {each.cookie for each in read_records(store)} == {3}
    assert len(table) == 1


def test_without_a_slot_the_connection_is_known_until_a_restart(store: SlotStore) -> None:
    table = ConnectionTable(store)
    for cookie in range(5):
        table.add(record(cookie))
    assert table.overflowed == 1
    assert table.get(4) == record(4)
    assert ConnectionTable(store).get(4) is None


def test_limited_connections_are_known_on_either_path(store: SlotStore) -> None:
    table = ConnectionTable(store)
    free = record(1)
    by_policy = msgspec.structs.replace(record(2), path="fallback").limited_by(
        Shaping(send=1_000), None
    )
    by_peer = record(3).limited_by(None, 2_000)
    for each in (free, by_policy, by_peer):
        table.add(each)
    assert [*read_limited(store)] == [by_policy, by_peer]
    assert (table.limited(1), table.limited(2), table.limited(3)) == (None, by_policy, by_peer)
    successor = ConnectionTable(store)
    assert successor.limited(2) == by_policy
    successor.replace(by_policy.limited_by(None, None))
    assert successor.limited(2) is None
    assert [*read_limited(store)] == [by_peer]


def test_limits_do_not_bring_back_a_connection_that_is_over(store: SlotStore) -> None:
    table = ConnectionTable(store)
    table.replace(record(1).limited_by(None, 2_000))
    assert [*read_records(store)] == []
    assert table.limited(1) is None


def test_limits_are_described() -> None:
    assert record(1).describe_limits() == ""
    limited = record(1).limited_by(Shaping(send=25_000_000, idle_s=600), 1_000_000)
    assert limited.describe_limits() == "send 200mbit, idle 10m, peer receives 8mbit"


def test_the_lower_rate_of_both_ends_holds() -> None:
    both = record(1).limited_by(Shaping(send=5_000), 4_000)
    assert both.rate == 4_000
    assert both.limited_by(both.shaping, None).rate == 5_000
    assert both.limited_by(Shaping(quota=1), None).rate is None


def test_unreadable_and_other_records_are_passed_over(store: SlotStore) -> None:
    ConnectionTable(store).add(record(1))
    store.put(key_of(KIND_CONNECTION, 2), b"\xc1")
    store.put(key_of(KIND_CONNECTION, 3), msgspec.msgpack.encode(["too short"]))
    store.put(key_of(2, 4), b"a listener")
    assert [*read_records(store)] == [record(1)]
