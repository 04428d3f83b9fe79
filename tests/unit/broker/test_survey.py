"""The sweep for connections that are over."""

from __future__ import annotations

import asyncio
import errno
import os
import time
from typing import TYPE_CHECKING, Any, cast

import pytest

from slim.broker import reporting, survey
from slim.broker.connections import ConnectionRecord, pack
from slim.broker.survey import Survey

if TYPE_CHECKING:
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

    async def snapshot() -> reporting.Snapshot:
        nonlocal looks
        looks += 1
        if looks < 3:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return reporting.Snapshot([record(9)], [], {})

    monkeypatch.setattr(watched, "snapshot", snapshot)

    async def sweep_until_forgotten() -> None:
        sweep = asyncio.create_task(watched.sweep())
        try:
            async with asyncio.timeout(5):
                await traps.heard.wait()
        finally:
            sweep.cancel()
            await asyncio.gather(sweep, return_exceptions=True)

    asyncio.run(sweep_until_forgotten())
    assert traps.forgotten[0] == 9


@pytest.mark.parametrize(
    ("created", "is_gone"),
    [(NOW - 1, False), (NOW - reporting.DENIED_KEPT_S - 1, True), (NOW + 3600, True)],
    ids=["recent", "old", "the clock was set back"],
)
def test_a_refusal_is_listed_for_a_while(
    monkeypatch: pytest.MonkeyPatch, created: float, is_gone: bool
) -> None:
    monkeypatch.setattr(time, "time", lambda: NOW)
    refused = record(9, path="denied", created=created)
    found = reporting.Gone().find(reporting.Snapshot([refused], [], {}))
    assert found == ([9] if is_gone else [])
