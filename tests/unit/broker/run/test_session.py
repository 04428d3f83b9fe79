"""slim-run's end of run.sock against answers that are right, wrong, late or missing."""

from __future__ import annotations

import os
import socket
import threading
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from slim.broker.errors import ControlError
from slim.broker.local import seqpacket
from slim.broker.local.messages import (
    PROTOCOL,
    Ack,
    Describe,
    Namespace,
    Offer,
    PrepareNamespace,
    Refuse,
    Register,
    RunRequest,
)
from slim.broker.run import session as session_module
from slim.broker.run.options import parse
from slim.broker.run.session import Session

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

GREETING = Offer(PROTOCOL, b"filter")


class Scripted:
    """A slimd that says its lines, one per request after the greeting, and notes the requests."""

    def __init__(self, path: str, lines: list[Any], fds: tuple[int, ...]) -> None:
        self.path = path
        self.requests: list[tuple[Any, int]] = []
        """(request, number of fds that came with it)."""
        self._lines = lines
        self._fds = fds
        self._listening = seqpacket.listen(path, mode=0o600)
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def close(self) -> None:
        self._thread.join()

    def _serve(self) -> None:
        self._listening.settimeout(10)
        with self._listening:
            sock, _ = self._listening.accept()
        sock.settimeout(10)
        decoder = msgspec.msgpack.Decoder(RunRequest)
        with sock:
            for number, line in enumerate(self._lines):
                if number:
                    self._receive(seqpacket.Channel(sock, decoder))
                if isinstance(line, bytes):
                    sock.send(line)
                elif line is not None:
                    raw = [msgspec.msgpack.encode(line)]
                    fds = self._fds if number else ()
                    socket.send_fds(sock, raw, list(fds))
            if self._lines and self._lines[-1] is None:
                # Silent, until the other side gives up.
                sock.recv(1)

    def _receive(self, channel: seqpacket.Channel[Any]) -> None:
        request, fds = channel.receive()
        for fd in fds:
            os.close(fd)
        self.requests.append((request, len(fds)))


@pytest.fixture
def slimd(tmp_path: Path) -> Iterator[Callable[..., Scripted]]:
    """Starts a Scripted with the given lines; scope: test."""
    started: list[Scripted] = []

    def start(*lines: Any, fds: tuple[int, ...] = ()) -> Scripted:
        started.append(Scripted(str(tmp_path / "run.sock"), list(lines), fds))
        return started[-1]

    yield start
    for scripted in started:
        scripted.close()


def open_fds() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def test_the_greeting_gives_the_filter(slimd: Callable[..., Scripted]) -> None:
    with Session(slimd(GREETING).path) as session:
        assert session.program == b"filter"


def test_who_is_asked_describes_itself_and_gets_the_filter(
    slimd: Callable[..., Scripted],
) -> None:
    scripted = slimd(Offer(PROTOCOL, b""), GREETING)
    options = parse(["--workload=web", "--label=app=web", "--namespace=shop", "--", "true"])
    with Session(scripted.path) as session:
        session.describe(options)
        assert session.program == b"filter"
    scripted.close()
    assert scripted.requests == [(Describe("web", "shop", {"app": "web"}), 0)]


def test_who_is_not_asked_says_nothing(slimd: Callable[..., Scripted]) -> None:
    scripted = slimd(GREETING)
    with Session(scripted.path) as session:
        session.describe(parse(["--", "true"]))
    scripted.close()
    assert scripted.requests == []


def test_another_version_of_the_protocol_is_refused(slimd: Callable[..., Scripted]) -> None:
    with pytest.raises(ConnectionError, match=f"version {PROTOCOL + 1}"):
        Session(slimd(Offer(PROTOCOL + 1, b"filter")).path)


def test_a_refusal_as_greeting_is_slimds_own_word(slimd: Callable[..., Scripted]) -> None:
    with pytest.raises(ControlError, match="not you") as raised:
        Session(slimd(Refuse("not you", "join the group slim")).path)
    assert raised.value.hint == "join the group slim"


def test_no_socket_is_an_oserror(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Session(str(tmp_path / "run.sock"))


def test_a_path_too_long_for_a_socket_is_an_oserror(tmp_path: Path) -> None:
    with pytest.raises(OSError):
        Session(str(tmp_path / ("x" * 200)))


@pytest.mark.parametrize(
    "line",
    [
        b"\xff",
        b"\x80",
        b"x" * 65537,
        Ack("c"),
        msgspec.msgpack.encode(["Offer", "1", b"f"]),
        msgspec.msgpack.encode(["Offer", PROTOCOL]),
        msgspec.msgpack.encode(["Refuse", "only a message"]),
    ],
)
def test_a_malformed_greeting_ends_the_connection(
    slimd: Callable[..., Scripted], line: object
) -> None:
    path = slimd(line).path
    with pytest.raises(ConnectionError):
        Session(path)


def test_a_slimd_that_hangs_up_is_an_oserror(slimd: Callable[..., Scripted]) -> None:
    with pytest.raises(ConnectionError, match="closed"):
        Session(slimd().path)


def test_a_silent_slimd_is_given_up_after_the_limit(
    slimd: Callable[..., Scripted], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "ANSWER_LIMIT_S", 1)
    with pytest.raises(TimeoutError, match="within 1 s"):
        Session(slimd(None).path)


def test_a_full_backlog_is_given_up_after_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "ANSWER_LIMIT_S", 1)
    path = str(tmp_path / "run.sock")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
        listening.bind(path)
        listening.listen(0)
        with seqpacket.connect(path), pytest.raises(TimeoutError):
            Session(path)


def test_a_prepared_namespace_comes_with_its_fd(slimd: Callable[..., Scripted]) -> None:
    with open("/dev/null") as null:
        scripted = slimd(GREETING, Namespace("ns-1"), fds=(null.fileno(),))
        with Session(scripted.path) as session:
            name, fd = session.prepare_namespace("blue", "10.0.0.2")
    assert name == "ns-1"
    assert os.stat("/dev/null").st_rdev == os.fstat(fd).st_rdev
    assert not os.get_inheritable(fd)
    os.close(fd)
    scripted.close()
    assert scripted.requests == [(PrepareNamespace("blue", "10.0.0.2"), 0)]


@pytest.mark.parametrize("count", [0, 2])
def test_another_number_of_fds_is_refused_and_none_is_kept(
    slimd: Callable[..., Scripted], count: int
) -> None:
    with open("/dev/null") as null:
        scripted = slimd(GREETING, Namespace("ns-1"), fds=(null.fileno(),) * count)
        with Session(scripted.path) as session:
            before = open_fds()
            with pytest.raises(ConnectionError, match="fds"):
                session.prepare_namespace("blue", None)
            assert open_fds() <= before


def test_fds_that_nobody_asked_for_are_closed(slimd: Callable[..., Scripted]) -> None:
    with open("/dev/null") as null:
        scripted = slimd(GREETING, Ack("c"), fds=(null.fileno(),))
        options = parse(["--", "true"])
        with Session(scripted.path) as session:
            before = open_fds()
            assert session.register(options, None, (0, 1, 2)) == "c"
            assert open_fds() <= before


def test_register_says_everything_and_bounds_the_command(slimd: Callable[..., Scripted]) -> None:
    scripted = slimd(GREETING, Ack("container-9"))
    command = ["x" * 1000, "\udcff", *["y"] * 100]
    options = parse(
        ["--workload", "w", "--label", "a=b", "--overlay", "o", "--fail-open", "--", *command]
    )
    with Session(scripted.path) as session:
        assert session.register(options, "ns-1", (0, 1, 2)) == "container-9"
    scripted.close()
    ((request, fds),) = scripted.requests
    assert fds == 3
    assert request == Register(
        workload="w",
        namespace="default",
        labels={"a": "b"},
        overlay="o",
        fail_mode="open",
        command=["x" * 256, "?", *["y"] * 30],
        prepared="ns-1",
    )


def test_more_labels_than_a_message_holds_are_refused_before_sending(
    slimd: Callable[..., Scripted],
) -> None:
    scripted = slimd(GREETING)
    options = parse(["--label", "a=" + "x" * 70000, "true"])
    with Session(scripted.path) as session, pytest.raises(ControlError, match="more than"):
        session.register(options, None, (0, 1, 2))


def test_a_refused_registration_carries_the_hint(slimd: Callable[..., Scripted]) -> None:
    scripted = slimd(GREETING, Refuse("contradictory labels", "use one set"))
    with Session(scripted.path) as session, pytest.raises(ControlError) as raised:
        session.register(parse(["true"]), None, (0, 1, 2))
    assert "contradictory labels" in raised.value.message
    assert raised.value.hint == "use one set"
