"""Real sockets on loopback, as sock_diag lists, finds and destroys them, and reports their end."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import struct
from typing import TYPE_CHECKING

import pytest

from slim.broker.endpoints import Endpoint, PortRange, parse_address
from slim.broker.kernel import sock_diag
from slim.broker.kernel.sock_diag import (
    ListenerDeaths,
    TcpSocket,
    can_destroy,
    cookies_alive,
    destroy_many,
    destroy_tcp,
    dump_tcp,
    find_tcp,
)
from slim.broker.kernel.socket_options import read_cookie
from support.polling import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

ESTABLISHED = 1
LISTEN = 10
TIME_WAIT = 6


@pytest.fixture
def sockets() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack


class Pair:
    """A listener and one connection to it, over loopback."""

    def __init__(self, sockets: contextlib.ExitStack, address: str = "127.0.0.1") -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self.listener = sockets.enter_context(
            socket.create_server(
                (address, 0), family=family, dualstack_ipv6=family == socket.AF_INET6
            )
        )
        self.client = sockets.enter_context(socket.socket(family))
        self.client.connect(self.listener.getsockname())
        self.server = sockets.enter_context(self.listener.accept()[0])


def local(sock: socket.socket) -> Endpoint:
    return Endpoint(parse_address(sock.getsockname()[0]), sock.getsockname()[1])


def peer(sock: socket.socket) -> Endpoint:
    return Endpoint(parse_address(sock.getpeername()[0]), sock.getpeername()[1])


def only(ports: Endpoint) -> PortRange:
    return PortRange(ports.port, ports.port)


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "::ffff:127.0.0.1"])
def test_dump_shows_the_listener_and_both_ends(sockets: contextlib.ExitStack, address: str) -> None:
    pair = Pair(sockets, address)
    found = {one.cookie: one for one in dump_tcp()}

    listener = found[read_cookie(pair.listener)]
    assert (listener.local, listener.peer.port) == (local(pair.listener), 0)
    assert (listener.state, listener.state_name) == (LISTEN, "listen")
    for end in (pair.client, pair.server):
        shown = found[read_cookie(end)]
        assert (shown.local, shown.peer) == (local(end), peer(end))
        assert (shown.state, shown.family) == (ESTABLISHED, end.family)
        assert f"socket:[{shown.inode}]" == _link_of(end)


def _link_of(sock: socket.socket) -> str:
    return os.readlink(f"/proc/self/fd/{sock.fileno()}")


def test_dump_in_a_port_range_leaves_the_rest_to_the_kernel(
    sockets: contextlib.ExitStack,
) -> None:
    pair, _other = Pair(sockets), Pair(sockets)
    found = dump_tcp(source_ports=only(local(pair.listener)))
    assert {one.cookie for one in found} == {read_cookie(pair.listener), read_cookie(pair.server)}


def test_both_ends_of_a_port_range_belong_to_it(sockets: contextlib.ExitStack) -> None:
    pair = Pair(sockets)
    port, cookie = local(pair.listener).port, read_cookie(pair.listener)

    def shown(first: int, last: int) -> bool:
        return cookie in cookies_alive(source_ports=PortRange(first, last))

    assert shown(port, port + 1)
    assert shown(port - 1, port)
    assert not shown(port + 1, port + 2)
    assert not shown(port - 2, port - 1)


def test_dump_of_states_shows_no_other(sockets: contextlib.ExitStack) -> None:
    pair = Pair(sockets)
    found = dump_tcp(states=1 << ESTABLISHED, source_ports=only(local(pair.listener)))
    assert [one.cookie for one in found] == [read_cookie(pair.server)]


def test_info_counts_what_crossed_the_connection(sockets: contextlib.ExitStack) -> None:
    pair = Pair(sockets)
    pair.client.sendall(b"x" * 1000)
    while len(pair.server.recv(4096, socket.MSG_PEEK)) < 1000:
        pass

    (client,) = dump_tcp(source_ports=only(local(pair.client)), info=True)
    (server,) = dump_tcp(source_ports=only(local(pair.server)), states=1 << ESTABLISHED, info=True)
    assert server.bytes_received == 1000
    # The SYN counts as one acknowledged byte.
    assert client.bytes_acked == 1001
    assert client.retransmits == 0
    # TCP_INFO is the same structure by another way.
    (rtt_us,) = struct.unpack_from(
        "=I", pair.client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104), 68
    )
    assert client.rtt_us == rtt_us > 0


def test_without_info_nothing_is_counted(sockets: contextlib.ExitStack) -> None:
    pair = Pair(sockets)
    (found,) = dump_tcp(source_ports=only(local(pair.client)))
    assert (found.rtt_us, found.bytes_acked, found.bytes_received) == (0, 0, 0)


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "::ffff:127.0.0.1"])
def test_find_gives_what_a_dump_shows(sockets: contextlib.ExitStack, address: str) -> None:
    pair = Pair(sockets, address)
    shown = {one.cookie: one for one in dump_tcp()}
    for sock in (pair.client, pair.server):
        cookie = read_cookie(sock)
        assert find_tcp(cookie, local(sock), peer(sock)) == shown[cookie]
    cookie = read_cookie(pair.listener)
    assert find_tcp(cookie, local(pair.listener), None) == shown[cookie]


@pytest.mark.parametrize("address", ["0.0.0.0", "::"])
def test_find_sees_a_wildcard_listener(sockets: contextlib.ExitStack, address: str) -> None:
    listener = Pair(sockets, address).listener
    found = find_tcp(read_cookie(listener), local(listener), None)
    assert found is not None
    assert found.state == LISTEN


def test_find_sees_every_member_of_a_reuseport_group(sockets: contextlib.ExitStack) -> None:
    first = sockets.enter_context(socket.create_server(("127.0.0.1", 0), reuse_port=True))
    group = [first]
    group += [
        sockets.enter_context(socket.create_server(first.getsockname(), reuse_port=True))
        for _ in range(7)
    ]
    for member in group:
        found = find_tcp(read_cookie(member), local(member), None)
        assert found is not None
        assert found.cookie == read_cookie(member)


def test_find_does_not_take_a_successor_for_the_socket(sockets: contextlib.ExitStack) -> None:
    pair = Pair(sockets)
    assert find_tcp(read_cookie(pair.server), local(pair.listener), None) is None
    assert find_tcp(read_cookie(pair.listener), local(pair.client), peer(pair.client)) is None


def test_find_gives_none_once_the_listener_is_closed() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        cookie, endpoint = read_cookie(listener), local(listener)
    assert find_tcp(cookie, endpoint, None) is None


@pytest.mark.needs_root
@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "::ffff:127.0.0.1"])
def test_destroy_aborts_both_ends(sockets: contextlib.ExitStack, address: str) -> None:
    pair = Pair(sockets, address)
    found = find_tcp(read_cookie(pair.client), local(pair.client), peer(pair.client))
    assert found is not None

    assert destroy_tcp(found) is True

    with pytest.raises(ConnectionAbortedError):
        pair.client.recv(1)
    with pytest.raises(ConnectionResetError):
        pair.server.recv(1)


@pytest.mark.needs_root
def test_destroy_of_a_socket_that_is_gone_says_so(sockets: contextlib.ExitStack) -> None:
    pair = Pair(sockets)
    found = find_tcp(read_cookie(pair.client), local(pair.client), peer(pair.client))
    assert found is not None
    assert destroy_tcp(found) is True
    assert destroy_tcp(found) is False


@pytest.mark.needs_root
def test_destroy_never_takes_another_socket_of_the_same_addresses(
    sockets: contextlib.ExitStack,
) -> None:
    pair = Pair(sockets)
    found = find_tcp(read_cookie(pair.client), local(pair.client), peer(pair.client))
    assert found is not None
    impostor = TcpSocket(found.family, found.state, found.local, found.peer, found.cookie + 1, 0, 0)
    assert destroy_tcp(impostor) is False
    pair.client.sendall(b"x")
    assert pair.server.recv(1) == b"x"


@pytest.mark.needs_root
def test_destroy_of_a_member_of_a_reuseport_group_that_the_kernel_cannot_name_is_an_error(
    sockets: contextlib.ExitStack,
) -> None:
    first = sockets.enter_context(socket.create_server(("127.0.0.1", 0), reuse_port=True))
    group = [first]
    group += [
        sockets.enter_context(socket.create_server(first.getsockname(), reuse_port=True))
        for _ in range(7)
    ]
    refused: list[int | None] = []
    for member in group:
        cookie = read_cookie(member)
        found = find_tcp(cookie, local(member), None)
        assert found is not None
        try:
            destroy_tcp(found)
        except OSError as error:
            refused.append(error.errno)
        alive = cookies_alive(source_ports=only(local(first)))
        assert (cookie in alive) is bool(refused)
        if refused:
            break
    # It picks by a hash: that it picks all eight in turn has a chance of 1 in 40,320.
    assert refused
    assert refused[0] in (errno.ENOENT, errno.ESTALE)


def test_cookies_alive_are_those_of_all_sockets(sockets: contextlib.ExitStack) -> None:
    pairs = [Pair(sockets, address) for address in ("127.0.0.1", "::1", "::ffff:127.0.0.1")]
    expected = {
        read_cookie(sock) for pair in pairs for sock in (pair.listener, pair.client, pair.server)
    }
    assert expected <= cookies_alive()
    with pairs[0].listener as closed:
        gone = read_cookie(closed)
    assert gone not in cookies_alive()


def test_cookies_alive_agree_with_a_dump_of_many_datagrams(
    sockets: contextlib.ExitStack,
) -> None:
    listener = sockets.enter_context(socket.create_server(("127.0.0.1", 0), backlog=512))
    clients = [
        sockets.enter_context(socket.create_connection(listener.getsockname())) for _ in range(500)
    ]
    ports = only(local(listener))
    assert {one.cookie for one in dump_tcp(source_ports=ports)} == cookies_alive(source_ports=ports)
    assert len(cookies_alive(source_ports=ports)) == 501
    assert {read_cookie(client) for client in clients} <= cookies_alive()


def test_a_closed_connection_waits_under_its_own_cookie(sockets: contextlib.ExitStack) -> None:
    pair = Pair(sockets)
    cookie, ports = read_cookie(pair.client), only(local(pair.client))
    pair.client.close()
    pair.server.close()
    (waiting,) = dump_tcp(source_ports=ports)
    assert (waiting.cookie, waiting.state, waiting.inode) == (cookie, TIME_WAIT, 0)
    assert cookie not in cookies_alive(states=sock_diag.ALL_STATES & ~(1 << TIME_WAIT))


@pytest.mark.needs_root
@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "0.0.0.0", "::"])
def test_death_of_a_listener_is_told(sockets: contextlib.ExitStack, address: str) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = sockets.enter_context(socket.create_server((address, 0), family=family))
    deaths = sockets.enter_context(contextlib.closing(ListenerDeaths(only(local(listener)))))
    cookie = read_cookie(listener)
    copy = listener.dup()

    listener.close()
    # The copy keeps the listener; nothing can have been said about it.
    assert deaths.receive() == []
    copy.close()

    assert select.select([deaths], [], [], 5.0)[0] == [deaths]
    assert deaths.receive() == [cookie]
    assert deaths.receive() == []
    assert not deaths.overflowed


@pytest.mark.needs_root
def test_deaths_of_other_sockets_wake_nobody(sockets: contextlib.ExitStack) -> None:
    inside = Pair(sockets)
    outside = Pair(sockets)
    deaths = sockets.enter_context(contextlib.closing(ListenerDeaths(only(local(inside.listener)))))
    cookie = read_cookie(inside.listener)
    # A connection on a port of the range, and a listener on another port.
    inside.client.close()
    inside.server.close()
    outside.listener.close()
    # Events keep their order, so that the last one says that nothing came before it.
    inside.listener.close()

    assert select.select([deaths], [], [], 5.0)[0] == [deaths]
    assert deaths.receive() == [cookie]


@pytest.mark.needs_root
def test_lost_events_are_admitted(sockets: contextlib.ExitStack) -> None:
    last = sockets.enter_context(socket.create_server(("127.0.0.1", 0)))
    deaths = sockets.enter_context(contextlib.closing(ListenerDeaths(PortRange(1, 65535))))
    queue = sockets.enter_context(
        socket.fromfd(deaths.fileno(), socket.AF_NETLINK, socket.SOCK_RAW)
    )
    # The kernel's least: room for a few events.
    queue.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)

    def lose_some() -> bool:
        for _ in range(50):
            socket.create_server(("127.0.0.1", 0)).close()
        deaths.receive()
        return deaths.overflowed

    eventually(lose_some, "events are lost")

    deaths.overflowed = False
    queue.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    cookie = read_cookie(last)
    last.close()
    eventually(lambda: cookie in deaths.receive(), "the end of a listener is told")


@pytest.mark.needs_root
def test_many_are_destroyed_and_no_other(sockets: contextlib.ExitStack) -> None:
    """More than fit one message; one of them is gone already."""
    pairs = [Pair(sockets) for _ in range(150)]
    by_cookie = {sock.cookie: sock for sock in dump_tcp()}
    doomed = [by_cookie[read_cookie(pair.client)] for pair in pairs[:-1]]
    assert destroy_tcp(doomed[3])

    assert destroy_many(doomed) == {sock.cookie for sock in doomed} - {doomed[3].cookie}

    for pair in pairs[:-1]:
        with pytest.raises(ConnectionAbortedError):
            pair.client.recv(1)
        with pytest.raises(ConnectionResetError):
            pair.server.recv(1)
    pairs[-1].client.sendall(b"x")
    assert pairs[-1].server.recv(1) == b"x"


def test_the_kernel_says_whether_it_destroys() -> None:
    """This one does; nothing is destroyed for the answer."""
    assert can_destroy()
