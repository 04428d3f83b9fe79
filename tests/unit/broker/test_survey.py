"""The sweep for connections that are over."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import time
from typing import TYPE_CHECKING, Any, cast

import pytest

from slim.broker import survey
from slim.broker.connections import ConnectionRecord, pack
from slim.broker.kernel.socket_options import read_cookie
from slim.broker.registry import Registry
from slim.broker.survey import Survey
from slim.broker.sweeping import DENIED_KEPT_S, Living, Sweep

if TYPE_CHECKING:
    from collections.abc import Iterator

    from slim.broker.local import messages

NOW = 1_000_000.0


def record(cookie: int, *, path: str = "fast", created: float = NOW) -> ConnectionRecord:
    return ConnectionRecord(
        cookie=cookie,
        workload=1,
        direction="out",
        local=pack(None),
        peer=pack(None),
        host_peer=pack(None),
        peer_host="",
        path=cast("Any", path),
        reason="",
        rule="",
        pid=1,
        created=created,
    )


class FakeTraps:
    def __init__(self) -> None:
        self.forgotten: list[int] = []
        self.heard = asyncio.Event()

    def send(self, message: messages.ForgetConnections) -> bool:
        self.forgotten += message.cookies
        self.heard.set()
        return True


def test_a_look_that_fails_does_not_end_the_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survey, "SWEEP_EVERY_S", 0)
    traps = FakeTraps()
    watched = Survey(cast("Any", None), cast("Any", None), cast("Any", traps))
    looks = 0
    over: list[ConnectionRecord] = []

    class Records:
        def each(self) -> Iterator[ConnectionRecord]:
            nonlocal looks
            looks += 1
            if looks < 3:
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            yield record(9)

    async def open_records() -> Records:
        return Records()

    monkeypatch.setattr(watched, "_open_records", open_records)

    async def sweep_until_forgotten() -> None:
        sweep = asyncio.create_task(watched.sweep(over.extend))
        try:
            async with asyncio.timeout(5):
                await traps.heard.wait()
        finally:
            sweep.cancel()
            await asyncio.gather(sweep, return_exceptions=True)

    asyncio.run(sweep_until_forgotten())
    assert traps.forgotten[0] == 9
    assert [record.cookie for record in over] == [9]


def never_alive(record: ConnectionRecord) -> bool:
    return False


def always_alive(record: ConnectionRecord) -> bool:
    return True


def test_a_connection_is_over_when_two_looks_running_miss_it() -> None:
    """In one look its record may be newer than the list of sockets."""
    sweep = Sweep()
    found = [
        [gone.cookie for gone in sweep.find([record(9)], never_alive, is_alive).gone]
        for is_alive in (never_alive, always_alive, never_alive, never_alive)
    ]
    assert found == [[], [], [], [9]]


def test_an_end_is_told_once_however_long_the_kernel_or_traps_keep_it() -> None:
    sweep = Sweep()
    looks = [(always_alive, always_alive), (never_alive, always_alive)]
    looks += 3 * [(never_alive, always_alive)] + 3 * [(never_alive, never_alive)]
    ends = [
        [each.cookie for each in sweep.find([record(9)], is_open, is_alive).ended]
        for is_open, is_alive in looks
    ]
    assert ends == [[], [], [9], [], [], [], [], []]


@pytest.mark.parametrize(
    ("created", "is_gone"),
    [(NOW - 1, False), (NOW - DENIED_KEPT_S - 1, True), (NOW + 3600, True)],
    ids=["recent", "old", "the clock was set back"],
)
def test_a_refusal_is_listed_for_a_while(
    monkeypatch: pytest.MonkeyPatch, created: float, is_gone: bool
) -> None:
    monkeypatch.setattr(time, "time", lambda: NOW)
    refused = record(9, path="denied", created=created)
    assert Sweep().find([refused], never_alive, never_alive).gone == ([refused] if is_gone else [])


def test_sockets_are_looked_for_where_their_connection_is() -> None:
    """A connection on the overlay is in its workload's namespace, which is gone here."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        cookie = read_cookie(listener)
        living = Living(Registry((), cast("Any", None)))
        assert living.has(record(cookie))
        assert not living.has(record(cookie, path="fallback"))
