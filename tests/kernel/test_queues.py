"""HTB classes for workloads, on the devices of a network namespace of the test's own."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import ipaddress
import socket
import subprocess
import threading
import time
from typing import TYPE_CHECKING

import pytest

from slim.broker import queues
from slim.broker.errors import KernelFeatureMissing, SlimError
from slim.broker.kernel.namespaces import CLONE_NEWNET, unshare
from slim.broker.queues import MARK_BASE, Queues, mark_of, put_in_force

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_netns, pytest.mark.needs_program("tc")]

ADDRESSES = (ipaddress.ip_address("192.0.2.1"),)
MBIT = 125_000


def in_own_namespace(test: Callable[[], None]) -> None:
    """Run it in a thread, with a loopback and a device that has the address."""

    def run() -> None:
        unshare(CLONE_NEWNET)
        for command in (
            "link set lo up",
            "link add under type veth peer name other",
            "address add 192.0.2.1/24 dev under",
            "link set under up",
            "link set other up",
        ):
            subprocess.run(["ip", *command.split()], check=True)
        test()

    with concurrent.futures.ThreadPoolExecutor(1) as executor:
        executor.submit(run).result()


def tc(*arguments: str) -> str:
    return subprocess.run(["tc", *arguments], check=True, capture_output=True, text=True).stdout


def rates(device: str) -> dict[str, str]:
    words = [line.split() for line in tc("class", "show", "dev", device).splitlines()]
    return {line[2]: line[line.index("rate") + 1] for line in words}


def roots(device: str) -> list[list[str]]:
    return [line.split()[1:3] for line in tc("qdisc", "show", "dev", device).splitlines()]


def test_classes_come_change_and_go_on_every_device() -> None:
    def test() -> None:
        before = {device: roots(device) for device in ("lo", "under", "other")}
        put_in_force(ADDRESSES, {mark_of(0): 10 * MBIT, mark_of(7): 20 * MBIT})
        for device in ("lo", "under"):
            assert rates(device) == {"5105:1": "10Mbit", "5105:8": "20Mbit"}
        put_in_force(ADDRESSES, {mark_of(7): 30 * MBIT, mark_of(9): 5 * MBIT})
        assert rates("under") == {"5105:8": "30Mbit", "5105:a": "5Mbit"}
        put_in_force(ADDRESSES, {})
        put_in_force(ADDRESSES, {})
        assert {device: roots(device) for device in before} == before

    in_own_namespace(test)


def test_one_of_the_administrators_is_never_replaced() -> None:
    def test() -> None:
        command = "qdisc add dev under root handle 7: tbf rate 1gbit burst 1mb latency 50ms"
        tc(*command.split())
        with pytest.raises(SlimError, match="of under, which is tbf"):
            queues.check(ADDRESSES)
        with pytest.raises(SlimError, match="of under, which is tbf"):
            put_in_force(ADDRESSES, {mark_of(0): MBIT})
        assert roots("under") == [["tbf", "7:"]]
        put_in_force(ADDRESSES, {})
        assert roots("under") == [["tbf", "7:"]]

    in_own_namespace(test)


def test_sockets_with_the_mark_share_the_rate_and_others_do_not() -> None:
    def received(marks: list[int]) -> float:
        """Bytes per second of all together, for a second."""
        with contextlib.ExitStack() as closing:
            listener = closing.enter_context(socket.create_server(("127.0.0.1", 0)))
            ends = []
            for mark in marks:
                client = closing.enter_context(socket.create_connection(listener.getsockname()))
                client.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
                ends.append(closing.enter_context(listener.accept()[0]))
                threading.Thread(target=send, args=(client,), daemon=True).start()
            total, start = 0, time.monotonic()
            for end in ends:
                end.setblocking(False)
            while (took := time.monotonic() - start) < 1:
                for end in ends:
                    with contextlib.suppress(BlockingIOError):
                        total += len(end.recv(1 << 20))
            return total / took

    def send(client: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                client.sendall(bytes(65536))

    def test() -> None:
        put_in_force((), {mark_of(3): 16 * MBIT})
        both = received([mark_of(3), mark_of(3)])
        assert 0 < both <= 16 * MBIT * 1.3
        for free in (0, 1, mark_of(4), MARK_BASE):
            assert received([free]) > 2 * both

    in_own_namespace(test)


def test_this_kernel_can_do_it_or_says_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    assert queues.probe() is None

    def missing(*_: object) -> None:
        raise KernelFeatureMissing("cannot limit workloads: no HTB", hint="get it")

    monkeypatch.setattr(queues, "put_in_force", missing)
    assert queues.probe() == ("cannot limit workloads: no HTB", "get it")
    with pytest.raises(KernelFeatureMissing, match="no HTB"):
        queues.check(ADDRESSES)


def test_there_are_as_many_marks_as_classes() -> None:
    assert mark_of(0) == MARK_BASE + 1
    assert mark_of(0xFFFD) == MARK_BASE + 0xFFFE
    with pytest.raises(SlimError, match="cannot have a limit"):
        mark_of(0xFFFE)


class FakeKeeper:
    def __init__(self) -> None:
        self.kept: set[str] = set()

    async def store(self, name: str, meta: bytes) -> None:
        self.kept.add(name)

    async def drop(self, name: str) -> None:
        self.kept.discard(name)


def test_the_kernel_is_asked_only_when_something_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[int, int]] = []
    monkeypatch.setattr(queues, "put_in_force", lambda _, rates: asked.append(rates))
    keeper = FakeKeeper()

    async def test() -> None:
        made = Queues(ADDRESSES, keeper)  # type: ignore[arg-type]
        await made.apply({})
        assert (asked, keeper.kept) == ([], set())
        for _ in range(2):
            await made.apply({5: 7})
        assert (asked, keeper.kept) == ([{5: 7}], {"queues"})
        # The next slimd has no such limit any more.
        successor = Queues(ADDRESSES, keeper)  # type: ignore[arg-type]
        successor.take_over([("queues", b"", [])])
        await successor.apply({})
        assert (asked, keeper.kept) == ([{5: 7}, {}], set())

    asyncio.run(test())
