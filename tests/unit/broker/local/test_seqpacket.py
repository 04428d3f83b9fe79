"""Messages and fds over SEQPACKET: whole or not at all, and never a leaked fd."""

from __future__ import annotations

import array
import errno
import os
import socket
from typing import TYPE_CHECKING

import msgspec
import pytest

from slim.broker.local import seqpacket
from slim.broker.local.messages import MAX_DATAGRAM, Done, Fetch, Store
from slim.broker.local.seqpacket import MAX_FDS, Channel, ProtocolViolation

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

decoder: msgspec.msgpack.Decoder[Store | Fetch] = msgspec.msgpack.Decoder(Store | Fetch)


@pytest.fixture
def ends() -> Iterator[tuple[Channel[Store | Fetch], socket.socket]]:
    """A channel and the raw socket of its peer."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(5)
    channel = Channel(ours, decoder)
    yield channel, theirs
    channel.close()
    theirs.close()


def open_fds() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def test_a_message_arrives_with_its_fds(
    ends: tuple[Channel[Store | Fetch], socket.socket],
) -> None:
    channel, peer = ends
    sender = Channel(peer, decoder)
    reading, writing = os.pipe2(os.O_CLOEXEC)
    sender.send(Store(1, "name", b"meta"), (reading, writing))
    message, fds = channel.receive()
    assert message == Store(1, "name", b"meta")
    assert len(fds) == 2
    assert [os.get_inheritable(fd) for fd in fds] == [False, False]
    os.write(fds[1], b"x")
    assert os.read(reading, 1) == b"x"
    for fd in (reading, writing, *fds):
        os.close(fd)


def test_messages_keep_their_boundaries(
    ends: tuple[Channel[Store | Fetch], socket.socket],
) -> None:
    channel, peer = ends
    for token in range(3):
        Channel(peer, decoder).send(Fetch(token, "x"))
    assert [channel.receive()[0] for _ in range(3)] == [Fetch(token, "x") for token in range(3)]


def test_a_peer_that_is_gone_is_the_end(
    ends: tuple[Channel[Store | Fetch], socket.socket],
) -> None:
    channel, peer = ends
    peer.close()
    with pytest.raises(EOFError):
        channel.receive()
    with pytest.raises(OSError) as caught:
        channel.send(Fetch(1, ""))
    assert caught.value.errno == errno.EPIPE


def test_nothing_to_read_is_a_blocking_error(
    ends: tuple[Channel[Store | Fetch], socket.socket],
) -> None:
    channel, _ = ends
    channel.sock.setblocking(False)
    with pytest.raises(BlockingIOError):
        channel.receive()


@pytest.mark.parametrize(
    "payload",
    [b"\xc1", b"{}", msgspec.msgpack.encode(Done(1)), msgspec.msgpack.encode(["Fetch", "1", 2])],
    ids=["no msgpack", "json", "another message", "wrong types"],
)
def test_a_malformed_message_is_a_violation_and_its_fds_are_closed(
    ends: tuple[Channel[Store | Fetch], socket.socket], payload: bytes
) -> None:
    channel, peer = ends
    before = open_fds()
    socket.send_fds(peer, [payload], [0, 0])
    with pytest.raises(ProtocolViolation, match="malformed"):
        channel.receive()
    assert open_fds() == before


def test_an_empty_datagram_with_fds_leaks_none(
    ends: tuple[Channel[Store | Fetch], socket.socket],
) -> None:
    channel, peer = ends
    before = open_fds()
    socket.send_fds(peer, [b""], [0])
    with pytest.raises(EOFError):
        channel.receive()
    assert open_fds() == before


def test_too_long_a_datagram_is_never_a_shorter_message(
    ends: tuple[Channel[Store | Fetch], socket.socket],
) -> None:
    channel, peer = ends
    peer.send(msgspec.msgpack.encode(Fetch(1, "x")).ljust(MAX_DATAGRAM + 1, b"\0"))
    with pytest.raises(ProtocolViolation, match="truncated"):
        channel.receive()


def test_too_many_fds_are_a_violation_and_all_closed(
    ends: tuple[Channel[Store | Fetch], socket.socket],
) -> None:
    channel, peer = ends
    before = open_fds()
    # CMSG_SPACE rounds up: one more than the limit may still fit, which does no harm.
    numbers = array.array("i", [0] * (MAX_FDS + 2))
    payload = msgspec.msgpack.encode(Fetch(1, "x"))
    peer.sendmsg([payload], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, numbers)])
    with pytest.raises(ProtocolViolation, match="truncated"):
        channel.receive()
    assert open_fds() == before


def test_too_large_a_message_is_not_sent(
    ends: tuple[Channel[Store | Fetch], socket.socket],
) -> None:
    channel, _ = ends
    with pytest.raises(OSError) as caught:
        channel.send(Fetch(1, "x" * MAX_DATAGRAM))
    assert caught.value.errno == errno.EMSGSIZE


def test_listening_replaces_what_was_there_with_the_right_mode(tmp_path: Path) -> None:
    path = tmp_path / "test.sock"
    path.write_text("an old file")
    before = os.umask(0o022)
    os.umask(before)
    with seqpacket.listen(str(path), mode=0o666) as listener:
        assert path.stat().st_mode & 0o777 == 0o666
        with seqpacket.connect(str(path)) as client:
            taken, _ = listener.accept()
            with taken:
                assert seqpacket.peer_credentials(taken) == (
                    os.getpid(),
                    os.getuid(),
                    os.getgid(),
                )
            assert not os.get_inheritable(client.fileno())
    after = os.umask(0o022)
    os.umask(after)
    assert after == before


def test_connecting_to_nothing_leaks_no_fd(tmp_path: Path) -> None:
    before = open_fds()
    with pytest.raises(FileNotFoundError):
        seqpacket.connect(str(tmp_path / "nobody"))
    with pytest.raises(OSError):
        seqpacket.listen(str(tmp_path / "no" / "directory"), mode=0o600)
    assert open_fds() == before


@pytest.mark.needs_root
def test_a_link_has_room_for_a_burst_to_a_busy_peer(tmp_path: Path) -> None:
    """News of 10,000 listeners, the whole range of host ports, while nobody reads."""
    path = str(tmp_path / "link.sock")
    with (
        seqpacket.listen(path, mode=0o600) as listener,
        seqpacket.connect(path) as connected,
        seqpacket.accept_trusted(listener) or pytest.fail("not accepted") as accepted,
    ):
        for end in (connected, accepted):
            end.setblocking(False)
            channel = Channel(end, decoder)
            for token in range(10_000):
                channel.send(Done(token, "x" * 80))
