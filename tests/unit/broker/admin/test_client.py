"""What slimctl says when slimd is not there, hangs, or is not what it expects."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING

import msgspec
import pytest

from slim.broker.admin import client, messages
from slim.broker.errors import ControlError
from support.fake_admin import FakeProvider, serving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextlib.contextmanager
def answering(run_dir: Path, *data: bytes, hang: bool = False) -> Iterator[None]:
    """Someone who sends that to the first client, and then leaves, or stays in silence."""
    done = threading.Event()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(run_dir / "admin.sock"))
        listener.listen(1)
        listener.settimeout(5)

        def answer() -> None:
            sock, _ = listener.accept()
            with sock:
                sock.recv(1 << 16)
                for piece in data:
                    sock.sendall(piece)
                if hang:
                    done.wait(5)

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()


def ask(run_dir: Path) -> messages.Status:
    return client.ask(run_dir, messages.GetStatus(), messages.Status)


def mistake(run_dir: Path) -> tuple[str, str]:
    with pytest.raises(ControlError) as caught:
        ask(run_dir)
    assert caught.value.exit_code == 5
    assert caught.value.hint
    return caught.value.message, caught.value.hint


def frame(payload: bytes) -> bytes:
    return struct.pack("!I", len(payload)) + payload


def test_the_answer_is_what_the_provider_said(tmp_path: Path) -> None:
    provider = FakeProvider()
    with serving(tmp_path, provider):
        assert ask(tmp_path) == provider.status_answer


def test_an_answer_of_megabytes_arrives_whole(tmp_path: Path) -> None:
    provider = FakeProvider()
    provider.connection_rows *= 20_000
    with serving(tmp_path, provider):
        answer = client.ask(tmp_path, messages.GetConnections(), messages.Connections)
    assert len(answer.connections) == 20_000


def test_without_a_socket_slimd_is_not_running(tmp_path: Path) -> None:
    message, hint = mistake(tmp_path)
    assert message == f"no slimd answers at {tmp_path / 'admin.sock'}"
    assert "slimd --config" in hint


def test_a_socket_that_nobody_listens_at_is_a_slimd_that_died(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "admin.sock"))
    message, hint = mistake(tmp_path)
    assert message.startswith("no slimd answers")
    assert "slimd --config" in hint


def test_a_run_dir_that_is_no_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    message, hint = mistake(tmp_path / "file")
    assert str(tmp_path / "file") in message
    assert "run_dir" in hint


def test_a_path_that_no_socket_can_have_is_named(tmp_path: Path) -> None:
    message, _ = mistake(tmp_path / ("x" * 200))
    assert "too long" in message


@pytest.mark.needs_root
def test_a_user_without_access_is_told_to_be_root(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(tmp_path / "admin.sock"))
        (tmp_path / "admin.sock").chmod(0o600)
        listener.listen(1)
        tmp_path.chmod(0o711)
        child = os.fork()
        if not child:
            # The directories above belong to root too: enter first, then drop.
            os.chdir(tmp_path)
            os.setresuid(65534, 65534, 65534)
            try:
                ask(type(tmp_path)())
            except ControlError as error:
                good = error.message.startswith("no access") and "root" in error.hint
                os._exit(0 if good else 1)
            finally:
                os._exit(2)
        _, wait_status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(wait_status) == 0


def test_a_slimd_that_closes_at_once_is_said_to(tmp_path: Path) -> None:
    with answering(tmp_path):
        message, hint = mistake(tmp_path)
    assert message.endswith("closed the connection")
    assert "installed with this slimd" in hint


def test_a_slimd_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "LIMIT_S", 0.1)
    with answering(tmp_path, b"\0\0", hang=True):
        message, _ = mistake(tmp_path)
    assert "did not answer" in message


def test_the_time_limit_is_for_the_whole_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([6.0, 12.0])
    monkeypatch.setattr(client, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    left, right = socket.socketpair()
    with left, right:
        right.sendall(b"a")
        # A byte came each time somebody looked, and yet time is up.
        with pytest.raises(TimeoutError):
            client._receive(left, 3, deadline=10.0)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (struct.pack("!I", messages.MAX_ANSWER + 1), f"{messages.MAX_ANSWER + 1} bytes"),
        (frame(b"\xc1"), "cannot be read"),
        (frame(msgspec.msgpack.encode({"type": "Weather"})), "cannot be read"),
        (frame(msgspec.msgpack.encode(messages.Plugins([]))), "GetStatus with Plugins"),
    ],
    ids=["too large", "no msgpack", "unknown answer", "another answer"],
)
def test_an_answer_that_does_not_fit_points_at_the_version(
    tmp_path: Path, data: bytes, words: str
) -> None:
    with answering(tmp_path, data):
        message, hint = mistake(tmp_path)
    assert words in message
    assert "installed with this slimd" in hint


def test_a_failure_carries_its_hint(tmp_path: Path) -> None:
    failure = messages.Failure("no", "because")
    with answering(tmp_path, frame(msgspec.msgpack.encode(failure))):
        assert mistake(tmp_path) == ("no", "because")
