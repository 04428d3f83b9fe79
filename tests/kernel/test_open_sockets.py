"""Sockets of other processes: found by inode, visited once, limited through a duplicate."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from slim.broker.kernel import pacing
from slim.broker.kernel.open_sockets import visit_sockets
from slim.broker.kernel.sock_diag import dump_tcp

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.needs_root


def inode(sock: socket.socket) -> int:
    return os.fstat(sock.fileno()).st_ino


@pytest.fixture
def foreign() -> Iterator[int]:
    """A socket that only a child has, under two numbers."""
    mine = socket.socket()
    number = inode(mine)
    child = subprocess.Popen(
        [sys.executable, "-c", "import os; os.dup(3); input()"],
        stdin=subprocess.PIPE,
        pass_fds=(mine.fileno(),),
    )
    mine.close()
    yield number
    child.communicate()


def test_a_socket_is_visited_once_however_many_fds_it_has(foreign: int) -> None:
    seen = []

    def visit(number: int, sock: socket.socket) -> bool:
        seen.append((number, inode(sock)))
        return True

    assert visit_sockets({foreign, 1}, visit) == {foreign}
    assert seen == [(foreign, foreign)]


def test_what_was_not_done_is_not_given(foreign: int) -> None:
    assert visit_sockets({foreign}, lambda *_: False) == set()
    assert visit_sockets(set(), lambda *_: True) == set()


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_limits_are_read_as_they_were_set(family: int) -> None:
    with socket.socket(family) as sock:
        assert pacing.read_rate(sock) == pacing.UNPACED
        pacing.set_rate(sock, 10**10)
        pacing.set_dscp(sock, 46)
        pacing.set_priority(sock, 3)
        assert pacing.read_rate(sock) == 10**10
        assert pacing.read_dscp(sock) == 46
        assert pacing.read_priority(sock) == 3
        pacing.set_rate(sock, pacing.UNPACED)
        assert pacing.read_rate(sock) == pacing.UNPACED


def test_the_kernel_lists_rate_and_idleness_of_a_connection() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname(), timeout=5) as client,
        listener.accept()[0] as server,
    ):
        pacing.set_rate(client, 1_000_000)
        client.sendall(b"x" * 1000)
        server.recv(1000, socket.MSG_WAITALL)
        by_inode = {sock.inode: sock for sock in dump_tcp(info=True)}
        near, far = by_inode[inode(client)], by_inode[inode(server)]
        assert (near.max_pacing_rate, far.max_pacing_rate) == (1_000_000, pacing.UNPACED)
        assert far.bytes_received == 1000
        assert far.idle_ms < 60_000
