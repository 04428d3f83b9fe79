"""Held accepts: what is kept of calls that signals have ended. The rest needs a kernel."""

from __future__ import annotations

import gc
import socket
import weakref
from types import SimpleNamespace
from typing import Any, cast

from slim.broker.accepting import Acceptor
from slim.broker.calls import Accept
from slim.broker.endpoints import packed16, parse_address
from slim.broker.listeners import ListenerRecord
from slim.broker.loop import Loop

LISTENER = ListenerRecord(
    cookie=7,
    workload=1,
    family=socket.AF_INET,
    address=packed16(parse_address("10.1.0.1")),
    dual_stack=False,
    port=80,
    host_address=packed16(parse_address("192.0.2.1")),
    host_port=20_000,
    pid=1,
    created=0.0,
)
THREAD, OTHER_THREAD = 100, 200


class HeldCall:
    """As much of a PendingCall as a held accept needs."""

    def __init__(self, tid: int) -> None:
        self.tid = tid


def hold(acceptor: Acceptor, tid: int, sock: socket.socket) -> weakref.ref[HeldCall]:
    call = HeldCall(tid)
    asked = Accept(fd=3, address=0, length=0, flags=0)
    acceptor.accept(cast("Any", call), asked, LISTENER, sock, nonblocking=False)
    return weakref.ref(call)


def test_a_thread_that_signals_interrupt_again_and_again_is_remembered_once() -> None:
    """Natively that costs nothing; a timer's signal every millisecond must not fill the memory."""
    acceptor = Acceptor(cast("Any", SimpleNamespace(loop=Loop())))
    acceptor.add_listener(LISTENER, None)
    with socket.create_server(("127.0.0.1", 0)) as sock:
        calls = [hold(acceptor, tid, sock) for tid in (OTHER_THREAD, *[THREAD] * 100)]
    gc.collect()
    assert [calls.index(known) for known in calls if known()] == [0, 100]
