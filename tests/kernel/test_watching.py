"""The table for who watches it: real sockets of loopback, records as traps writes them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from typing import TYPE_CHECKING, Any, cast

import pytest

from slim.broker import watching
from slim.broker.connections import SLOT_BYTES, ConnectionRecord, ConnectionTable, pack
from slim.broker.endpoints import Endpoint, parse_address
from slim.broker.kernel.socket_options import read_cookie
from slim.broker.reporting import Records
from slim.broker.slots import SlotStore
from slim.broker.watching import Watching
from support.brokering import FakePlugins, registry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from slim.broker.admin.messages import Changes, Connection

PAYLOAD = 100_000


class Table:
    """A Watching before records that the test writes."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        store = SlotStore.create("slim-test", slot_bytes=SLOT_BYTES, slots=64)
        stack.callback(store.close)
        self.connections = ConnectionTable(store)
        self.records = Records(os.dup(store.fileno()))
        stack.callback(self.records.close)
        self.listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        self._stack = stack
        self.watching = Watching(registry(FakePlugins()), cast("Any", self))

    async def open_records(self) -> Records:
        return self.records

    def connect(self, **changed: Any) -> tuple[socket.socket, socket.socket, int]:
        client = self._stack.enter_context(socket.create_connection(self.listener.getsockname()))
        server = self._stack.enter_context(self.listener.accept()[0])
        cookie = read_cookie(client)
        self.connections.add(record(cookie, client, **changed))
        return client, server, cookie

    def ask(self, after: int = 0) -> Changes:
        return asyncio.run(self.watching.changes(after))


def record(cookie: int, client: socket.socket, **changed: Any) -> ConnectionRecord:
    local, peer = (
        Endpoint(parse_address(name[0]), name[1])
        for name in (client.getsockname(), client.getpeername())
    )
    values = {
        "cookie": cookie,
        "workload": 1,
        "direction": "out",
        "local": pack(local),
        "peer": pack(peer),
        "host_peer": pack(peer),
        "peer_host": "b",
        "path": "fast",
        "reason": "",
        "rule": "default",
        "pid": os.getpid(),
        "created": time.time(),
    }
    return ConnectionRecord(**{**values, **changed})


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> Iterator[Table]:
    monkeypatch.setattr(watching, "LOOK_EVERY_S", 0.0)
    monkeypatch.setattr(watching, "SPARE", 0)
    with contextlib.ExitStack() as stack:
        yield Table(stack)


def rows(changes: Changes) -> dict[int, Connection]:
    return {row.cookie: row for row in changes.rows}


def test_the_first_answer_is_everything_and_the_next_nothing(table: Table) -> None:
    client, _, cookie = table.connect()
    first = table.ask()
    assert first.is_whole
    row = rows(first)[cookie]
    assert row.state == "estab"
    host, port = client.getsockname()
    assert row.overlay_local == f"{host}:{port}"
    assert row.peer_host == "b"
    again = table.ask(first.generation)
    assert (again.is_whole, again.rows, again.gone, again.traffic) == (False, [], [], [])


def test_only_what_is_new_is_told(table: Table) -> None:
    table.connect()
    first = table.ask()
    _, _, second = table.connect()
    answer = table.ask(first.generation)
    assert (answer.is_whole, [*rows(answer)]) == (False, [second])


def test_traffic_is_the_kernel_s_own_count(table: Table) -> None:
    client, server, cookie = table.connect()
    first = table.ask()
    sent = 0
    while sent < PAYLOAD:
        client.sendall(bytes(10_000))
        sent += 10_000
        taken = 0
        while taken < 10_000:
            taken += len(server.recv(10_000))
    server.sendall(bytes(777))
    assert len(client.recv(777, socket.MSG_WAITALL)) == 777
    (traffic,) = table.ask(first.generation).traffic
    assert traffic.cookie == cookie
    # The kernel counts the SYN as one byte that was acknowledged.
    assert traffic.bytes_acked in (PAYLOAD, PAYLOAD + 1)
    assert traffic.bytes_received == 777
    # tcp_info(7): tcpi_rtt is the fifteenth 32-bit word after the eight bytes of the beginning.
    info = client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
    assert traffic.rtt_us == int.from_bytes(info[68:72], "little")
    assert traffic.retransmits == int.from_bytes(info[100:104], "little")


def test_a_state_that_changes_is_told_with_its_row(table: Table) -> None:
    client, server, cookie = table.connect()
    first = table.ask()
    server.shutdown(socket.SHUT_WR)
    assert client.recv(1) == b""
    assert rows(table.ask(first.generation))[cookie].state == "close-wait"


def test_what_ended_is_told_by_its_cookie(table: Table) -> None:
    client, _server, cookie = table.connect()
    first = table.ask()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes([1, 0, 0, 0, 0, 0, 0, 0]))
    client.close()
    assert table.ask(first.generation).gone == [cookie]


def test_what_came_and_went_between_two_questions_is_no_row(table: Table) -> None:
    first = table.ask()
    client, _server, cookie = table.connect()
    table.ask(first.generation)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes([1, 0, 0, 0, 0, 0, 0, 0]))
    client.close()
    answer = table.ask(first.generation)
    assert (rows(answer), answer.gone) == ({}, [cookie])


def test_a_refusal_needs_no_socket_and_stays_while_it_is_on_record(table: Table) -> None:
    client, _, _ = table.connect()
    table.connections.add(record(5, client, path="denied", rule="rules:no"))
    answer = table.ask()
    assert rows(answer)[5].verdict == "deny"
    assert table.ask(answer.generation).gone == []
    table.connections.forget(5)
    assert table.ask(answer.generation).gone == [5]


@pytest.mark.parametrize(
    "after",
    [lambda g: 0, lambda g: 1, lambda g: g + 1000],
    ids=["nothing", "a predecessor's", "one to come"],
)
def test_who_knows_nothing_of_use_gets_everything(
    table: Table, after: Callable[[int], int]
) -> None:
    _, _, cookie = table.connect()
    first = table.ask()
    answer = table.ask(after(first.generation))
    assert answer.is_whole
    assert [*rows(answer)] == [cookie]
    assert [each.cookie for each in answer.traffic] == [cookie]


def test_who_was_away_for_more_than_is_remembered_gets_everything(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "MAX_GONE", 2)
    table.watching = Watching(registry(FakePlugins()), cast("Any", table))
    client, _, kept = table.connect()
    for cookie in (5, 6, 7):
        table.connections.add(record(cookie, client, path="denied"))
    first = table.ask()
    for cookie in (5, 6, 7):
        table.connections.forget(cookie)
        table.ask(first.generation)
    answer = table.ask(first.generation)
    assert (answer.is_whole, [*rows(answer)]) == (True, [kept])


def test_questions_within_a_second_share_a_look(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "LOOK_EVERY_S", 3600.0)
    first = table.ask()
    table.connect()
    assert table.ask(first.generation).rows == []
