"""Where the OCI agent's listening socket comes from: systemd, the keeper, or nowhere yet."""

from __future__ import annotations

import asyncio
import os
import socket
from typing import TYPE_CHECKING, cast

import pytest

from slim.broker.errors import ControlError
from slim.broker.local import messages
from slim.broker.oci import listener

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from slim.broker.control_links import KeeperClient


class FakeKeeper:
    """Keeps duplicates, as the keeper does."""

    def __init__(self) -> None:
        self.kept: dict[str, int] = {}

    async def store(self, name: str, _meta: bytes, fds: tuple[int, ...]) -> None:
        self.close()
        self.kept[name] = os.dup(fds[0])

    async def fetch(
        self, prefix: str
    ) -> tuple[list[tuple[str, bytes, list[int]]], messages.HeldEnd]:
        held = [(name, b"", [os.dup(fd)]) for name, fd in self.kept.items() if name == prefix]
        return held, messages.HeldEnd(0, 1, 0)

    def close(self) -> None:
        for fd in self.kept.values():
            os.close(fd)
        self.kept.clear()


@pytest.fixture
def keeper() -> Iterator[FakeKeeper]:
    keeper = FakeKeeper()
    yield keeper
    keeper.close()


def open_listener(path: Path, keeper: FakeKeeper) -> socket.socket:
    return asyncio.run(listener.open_listener(path, cast("KeeperClient", keeper)))


def test_who_comes_while_no_slimd_runs_waits_for_the_next(
    tmp_path: Path, keeper: FakeKeeper
) -> None:
    path = tmp_path / "oci.sock"
    open_listener(path, keeper).close()
    with socket.socket(socket.AF_UNIX) as runtime:
        runtime.connect(str(path))
        runtime.sendall(b"waits")
        with open_listener(path, keeper) as again, again.accept()[0] as heard:
            assert heard.recv(10) == b"waits"


def test_a_kept_socket_that_lost_its_name_is_replaced(tmp_path: Path, keeper: FakeKeeper) -> None:
    path = tmp_path / "oci.sock"
    open_listener(path, keeper).close()
    path.unlink()
    with open_listener(path, keeper), socket.socket(socket.AF_UNIX) as runtime:
        runtime.connect(str(path))


@pytest.fixture
def passed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """A socket as systemd would pass it, but for its number."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "systemd.sock"))
        monkeypatch.setattr(listener, "_FIRST_FD", sock.fileno())
        monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
        monkeypatch.setenv("LISTEN_FDS", "1")
        monkeypatch.setenv("LISTEN_FDNAMES", "oci")
        yield sock


def test_systemds_socket_is_taken_once(
    passed: socket.socket, tmp_path: Path, keeper: FakeKeeper
) -> None:
    passed.listen()
    found = open_listener(tmp_path / "oci.sock", keeper)
    assert found.fileno() == passed.detach()
    assert not found.get_inheritable()
    assert keeper.kept == {}
    assert "LISTEN_FDS" not in os.environ
    assert listener.take_activated() is None
    found.close()


def test_what_systemd_passed_to_another_process_is_not_ours(
    passed: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    passed.listen()
    monkeypatch.setenv("LISTEN_PID", "1")
    assert listener.take_activated() is None


@pytest.mark.usefixtures("passed")
def test_a_socket_of_another_name_is_not_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LISTEN_FDNAMES", "admin")
    assert listener.take_activated() is None


def test_a_socket_that_does_not_listen_is_refused(passed: socket.socket) -> None:
    with pytest.raises(ControlError, match="no listening unix stream socket"):
        listener.take_activated()
    # It was taken, and is closed.
    passed.detach()


@pytest.mark.usefixtures("passed")
def test_a_number_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LISTEN_FDS", "²")
    with pytest.raises(ControlError, match="no number"):
        listener.take_activated()
