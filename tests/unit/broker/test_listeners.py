"""Listener records, the table of them, and who gets which host port."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import msgspec
import pytest

from slim.broker.endpoints import Endpoint, PortRange, packed16, parse_address
from slim.broker.listeners import (
    KIND_LISTENER,
    KIND_PORT,
    HostPorts,
    ListenerRecord,
    ListenerTable,
    read_listeners,
)
from slim.broker.slots import SlotStore, key_of

if TYPE_CHECKING:
    from collections.abc import Iterator

PORTS = PortRange(20000, 20003)
QUARANTINE_S = 600.0
WILDCARD = packed16(parse_address("0.0.0.0"))


def record(cookie: int = 1, **changes: object) -> ListenerRecord:
    made = ListenerRecord(
        cookie=cookie,
        workload=77,
        family=2,
        address=WILDCARD,
        dual_stack=False,
        port=80,
        host_address=packed16(parse_address("192.0.2.1")),
        host_port=20000,
        pid=1,
        created=0.0,
    )
    return msgspec.structs.replace(made, **changes)


@pytest.fixture
def store() -> Iterator[SlotStore]:
    store = SlotStore.create("slim-test", slot_bytes=256, slots=32)
    yield store
    store.close()


# --- records ----------------------------------------------------------------------------------


def test_a_record_tells_both_endpoints() -> None:
    assert record().local == Endpoint.parse("0.0.0.0:80")
    assert record().host == Endpoint.parse("192.0.2.1:20000")


@pytest.mark.parametrize(
    ("own", "dual_stack", "address", "port", "serves"),
    [
        ("0.0.0.0", False, "10.1.0.1", 80, True),
        ("0.0.0.0", False, "10.1.0.1", 81, False),
        ("0.0.0.0", False, "fd00::1", 80, False),
        ("::", False, "fd00::1", 80, True),
        ("::", False, "10.1.0.1", 80, False),
        ("::", True, "10.1.0.1", 80, True),
        ("10.1.0.1", False, "10.1.0.1", 80, True),
        ("10.1.0.1", False, "10.1.0.2", 80, False),
    ],
)
def test_which_destinations_a_listener_serves(
    own: str, dual_stack: bool, address: str, port: int, serves: bool
) -> None:
    listener = record(address=packed16(parse_address(own)), dual_stack=dual_stack)
    assert listener.serves(parse_address(address), port) is serves


# --- the table --------------------------------------------------------------------------------


def test_the_table_finds_by_cookie_and_by_port(store: SlotStore) -> None:
    table = ListenerTable(store)
    for made in (record(1), record(2), record(3, port=81), record(4, workload=78)):
        table.add(made)
    assert table.get(2) == record(2)
    assert table.get(9) is None
    assert table.on_port(77, 80) == [record(1), record(2)]
    assert len(table) == 4


def test_forgetting_while_iterating_is_fine(store: SlotStore) -> None:
    table = ListenerTable(store)
    for cookie in (1, 2, 3):
        table.add(record(cookie))
    for listener in table:
        table.forget(listener.cookie)
        table.forget(listener.cookie)
    assert len(table) == 0
    assert [*read_listeners(store)] == []


def test_a_successor_and_a_reader_find_the_listeners(store: SlotStore) -> None:
    ListenerTable(store).add(record(1))
    store.put(key_of(KIND_LISTENER, 2), b"\xc1")
    store.put(key_of(9, 3), b"of another kind")
    assert [*ListenerTable(store)] == [record(1)]
    assert [*read_listeners(store)] == [record(1)]


# --- host ports -------------------------------------------------------------------------------


def ports(store: SlotStore, range_: PortRange = PORTS) -> HostPorts:
    return HostPorts(range_, store, quarantine_s=QUARANTINE_S)


def candidates(given: HostPorts, port: int = 80, now_s: float = 0.0) -> list[int]:
    return [*given.candidates(77, WILDCARD, port, now_s)]


def test_every_port_of_the_range_is_tried_once(store: SlotStore) -> None:
    assert sorted(candidates(ports(store))) == [20000, 20001, 20002, 20003]


def test_the_order_is_stable_and_differs_by_listener(store: SlotStore) -> None:
    given = ports(store)
    assert candidates(given) == candidates(ports(store))
    assert len({tuple(candidates(given, port)) for port in range(80, 120)}) == 4


def test_the_port_used_before_comes_first_and_once(store: SlotStore) -> None:
    given = ports(store)
    given.take(20002, 77, WILDCARD, 80)
    assert candidates(given)[0] == 20002
    assert sorted(candidates(given)) == [20000, 20001, 20002, 20003]
    given.release(20002, 0.0)
    assert candidates(given, now_s=QUARANTINE_S + 1)[0] == 20002
    assert len(candidates(given, now_s=QUARANTINE_S + 1)) == 4


def test_others_get_a_port_only_after_its_quarantine(store: SlotStore) -> None:
    given = ports(store)
    given.take(20002, 77, WILDCARD, 80)
    assert 20002 not in candidates(given, port=81, now_s=1e12)
    given.release(20002, 100.0)
    assert 20002 not in candidates(given, port=81, now_s=99.0 + QUARANTINE_S)
    assert 20002 in candidates(given, port=81, now_s=100.0 + QUARANTINE_S)


def test_releasing_an_unknown_port_is_no_error(store: SlotStore) -> None:
    ports(store).release(20000, 0.0)
    assert [*store.items()] == []


def test_a_successor_keeps_ports_set_aside(store: SlotStore) -> None:
    ports(store).take(20002, 77, WILDCARD, 80)
    store.put(key_of(KIND_PORT, 9), b"\xc1")
    successor = ports(store)
    assert candidates(successor)[0] == 20002
    assert 20002 not in candidates(successor, port=81)


def test_a_port_outside_a_changed_range_is_not_used_again(store: SlotStore) -> None:
    ports(store).take(20002, 77, WILDCARD, 80)
    changed = ports(store, PortRange(30000, 30001))
    assert sorted(candidates(changed)) == [30000, 30001]


def test_reading_beside_the_writer_needs_no_right_to_write(store: SlotStore) -> None:
    ListenerTable(store).add(record(1))
    reader = SlotStore(os.dup(store.fileno()), writable=False)
    assert [*read_listeners(reader)] == [record(1)]
    reader.close()
