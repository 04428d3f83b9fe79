"""The admin socket: framing, bounds, who may ask, and what goes wrong on the other side."""

from __future__ import annotations

import logging
import os
import socket
import stat
import struct
from typing import TYPE_CHECKING

import msgspec
import pytest

from slim.broker.admin import client, messages, server
from slim.broker.errors import ControlError, SlimError, SyscallError
from support.fake_admin import FakeProvider, serving
from support.polling import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from slim.broker.admin.messages import AdminAnswer

LIMIT_S = 5.0
_answers: msgspec.msgpack.Decoder[AdminAnswer] = msgspec.msgpack.Decoder(messages.AdminAnswer)


@pytest.fixture
def provider() -> FakeProvider:
    return FakeProvider()


@pytest.fixture
def run_dir(tmp_path: Path, provider: FakeProvider) -> Iterator[Path]:
    with serving(tmp_path, provider) as directory:
        yield directory


def connect(run_dir: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(LIMIT_S)
    sock.connect(str(run_dir / "admin.sock"))
    return sock


def frame(payload: bytes) -> bytes:
    return struct.pack("!I", len(payload)) + payload


def receive(sock: socket.socket) -> AdminAnswer:
    with sock.makefile("rb") as stream:
        (length,) = struct.unpack("!I", stream.read(4))
        return _answers.decode(stream.read(length))


def is_closed(sock: socket.socket) -> bool:
    try:
        return sock.recv(1) == b""
    except ConnectionResetError:
        return True


def test_the_socket_is_for_its_owner_only(run_dir: Path) -> None:
    mode = (run_dir / "admin.sock").stat().st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o600


def test_a_socket_that_a_dead_slimd_left_is_replaced(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(tmp_path / "admin.sock"))
    with serving(tmp_path, FakeProvider()):
        client.ask(tmp_path, messages.GetStatus(), messages.Status)


def test_the_socket_goes_with_the_server(tmp_path: Path) -> None:
    with serving(tmp_path, FakeProvider()):
        assert (tmp_path / "admin.sock").exists()
    assert not (tmp_path / "admin.sock").exists()


def test_a_closing_server_leaves_its_successors_socket_alone(tmp_path: Path) -> None:
    with serving(tmp_path, FakeProvider(pid=1)):
        # In a directory of its own, so that the inode cannot be the same by chance.
        (tmp_path / "next").mkdir()
        with serving(tmp_path / "next", FakeProvider(pid=2)):
            (tmp_path / "next" / "admin.sock").rename(tmp_path / "admin.sock")
    assert (tmp_path / "admin.sock").exists()


def test_one_client_may_ask_more_than_once(run_dir: Path) -> None:
    with connect(run_dir) as sock:
        for request, answer in (
            (messages.GetStatus(), messages.Status),
            (messages.GetContainers(), messages.Containers),
            (messages.GetConnections(), messages.Connections),
            (messages.GetPlugins(), messages.Plugins),
        ):
            sock.sendall(frame(msgspec.msgpack.encode(request)))
            assert isinstance(receive(sock), answer)


def test_a_frame_may_arrive_byte_by_byte(run_dir: Path) -> None:
    with connect(run_dir) as sock:
        for byte in frame(msgspec.msgpack.encode(messages.GetPlugins())):
            sock.sendall(bytes([byte]))
        assert isinstance(receive(sock), messages.Plugins)


@pytest.mark.parametrize("release", [False, True])
def test_stop_passes_release_on(run_dir: Path, provider: FakeProvider, release: bool) -> None:
    provider.pid = 99
    answer = client.ask(run_dir, messages.Stop(release=release), messages.Stopping)
    assert (answer.pid, provider.stops) == (99, [release])


@pytest.mark.parametrize(
    "data",
    [
        struct.pack("!I", messages.MAX_REQUEST + 1),
        struct.pack("!I", 0),
        frame(b"\xc1"),
        frame(msgspec.msgpack.encode({"type": "FormatDisk"})),
        frame(msgspec.msgpack.encode({"type": "Stop", "release": "yes"})),
        frame(msgspec.msgpack.encode([1, 2])),
    ],
    ids=["too large", "empty", "no msgpack", "unknown request", "wrong type", "no request"],
)
def test_a_malformed_frame_costs_the_client_its_connection_and_is_logged(
    run_dir: Path, provider: FakeProvider, data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    with connect(run_dir) as sock:
        sock.sendall(data)
        assert is_closed(sock)
    assert [record.levelname for record in caplog.records if "dropped" in record.message] == [
        "WARNING"
    ]
    assert provider.stops == []
    client.ask(run_dir, messages.GetStatus(), messages.Status)


def test_a_client_that_leaves_in_a_frame_is_no_news(
    run_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with connect(run_dir) as sock:
        sock.sendall(frame(msgspec.msgpack.encode(messages.GetStatus()))[:-1])
    client.ask(run_dir, messages.GetStatus(), messages.Status)
    assert not [record for record in caplog.records if record.name.startswith("slim")]


def test_an_idle_client_is_dropped(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "IDLE_LIMIT_S", 0.05)
    with connect(run_dir) as sock:
        assert is_closed(sock)


def test_a_silent_client_keeps_nobody_waiting(run_dir: Path) -> None:
    with connect(run_dir) as silent:
        silent.sendall(b"\0\0")
        client.ask(run_dir, messages.GetStatus(), messages.Status)


def test_clients_beyond_the_limit_are_refused_until_one_leaves(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(server, "MAX_CLIENTS", 2)
    request = frame(msgspec.msgpack.encode(messages.GetPlugins()))
    held = [connect(run_dir) for _ in range(2)]
    try:
        for sock in held:
            sock.sendall(request)
            receive(sock)
        with connect(run_dir) as third:
            assert is_closed(third)
        assert f"pid {os.getpid()} is one too many" in caplog.text
    finally:
        for sock in held:
            sock.close()

    def is_served() -> bool:
        try:
            return bool(client.ask(run_dir, messages.GetPlugins(), messages.Plugins).plugins)
        except ControlError:
            return False

    eventually(is_served, "a client is served again")


def test_another_user_is_refused(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(server, "peer_credentials", lambda sock: (77, os.geteuid() + 1000, 0))
    with connect(run_dir) as sock:
        assert is_closed(sock)
    assert f"refused: pid 77 of user {os.geteuid() + 1000}" in caplog.text


def test_root_is_served_whoever_slimd_is(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "peer_credentials", lambda sock: (77, 0, 0))
    monkeypatch.setattr(os, "geteuid", lambda: 1234)
    client.ask(run_dir, messages.GetStatus(), messages.Status)


def test_an_error_of_the_provider_is_the_answer(run_dir: Path, provider: FakeProvider) -> None:
    provider.error = SlimError("no table", hint="lay one")
    with connect(run_dir) as sock:
        sock.sendall(frame(msgspec.msgpack.encode(messages.GetStatus())))
        assert receive(sock) == messages.Failure("no table", "lay one")
        provider.error = None
        sock.sendall(frame(msgspec.msgpack.encode(messages.GetStatus())))
        assert isinstance(receive(sock), messages.Status)


def test_a_failed_system_call_of_the_provider_is_the_answer_and_logged(
    run_dir: Path, provider: FakeProvider, caplog: pytest.LogCaptureFixture
) -> None:
    provider.error = SyscallError("setns", 2, "namespace x")
    with pytest.raises(ControlError, match=r"^setns: .*ENOENT.*namespace x$"):
        client.ask(run_dir, messages.GetConnections(), messages.Connections)
    assert "GetConnections failed: " in caplog.text


def test_a_request_of_another_protocol_is_told_so(run_dir: Path, provider: FakeProvider) -> None:
    with pytest.raises(ControlError, match="protocol 2") as caught:
        client.ask(run_dir, messages.Stop(protocol=2), messages.Stopping)
    assert "installed with this slimd" in caught.value.hint
    assert provider.stops == []


def test_an_answer_beyond_the_limit_becomes_a_failure(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(messages, "MAX_ANSWER", 100)
    with pytest.raises(ControlError, match="the limit is 100"):
        client.ask(run_dir, messages.GetStatus(), messages.Status)
