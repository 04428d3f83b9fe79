"""Connections of another process, ended without SOCK_DESTROY."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from slim.broker.kernel.disconnect import disconnect_all
from support.polling import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.needs_root

LIMIT_S = 5.0


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """A connection over loopback, both ends ours."""
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname(), timeout=LIMIT_S) as client,
        listener.accept()[0] as server,
    ):
        server.settimeout(LIMIT_S)
        yield client, server


def inode(sock: socket.socket) -> int:
    return os.fstat(sock.fileno()).st_ino


def test_both_ends_see_a_reset(pair: tuple[socket.socket, socket.socket]) -> None:
    client, server = pair

    assert disconnect_all({inode(client), 1}) == {inode(client)}

    with pytest.raises(ConnectionResetError):
        client.recv(1)
    with pytest.raises(ConnectionResetError):
        server.recv(1)


def test_a_thread_that_waits_is_woken(pair: tuple[socket.socket, socket.socket]) -> None:
    """Whichever way the kernel has it: an error, or the end of the stream."""
    client, _server = pair
    client.settimeout(None)
    woken = threading.Event()

    def wait() -> None:
        with contextlib.suppress(ConnectionError):
            assert client.recv(1) == b""
        woken.set()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    stat = Path(f"/proc/self/task/{thread.native_id}/stat")
    eventually(lambda: stat.read_text().rpartition(")")[2].split()[0] == "S", "the thread waits")
    disconnect_all({inode(client)})
    assert woken.wait(LIMIT_S)
