"""A keeper as a real process in a directory of its own, and a client of it."""

from __future__ import annotations

import itertools
import os
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import msgspec

from slim.broker.local import messages, seqpacket
from support.polling import eventually

if TYPE_CHECKING:
    import signal
    from pathlib import Path

_decoder: msgspec.msgpack.Decoder[messages.KeeperAnswer] = msgspec.msgpack.Decoder(
    messages.KeeperAnswer
)


class KeeperClient:
    """One connection; a context manager."""

    def __init__(self, path: str) -> None:
        sock = seqpacket.connect(path)
        sock.settimeout(10)
        self.channel = seqpacket.Channel(sock, _decoder)
        self._tokens = itertools.count(1)

    def __enter__(self) -> KeeperClient:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.channel.close()

    def _done(self, token: int) -> None:
        answer, fds = self.channel.receive()
        assert (answer, fds) == (messages.Done(token), [])

    def store(self, name: str, meta: bytes = b"", fds: tuple[int, ...] = ()) -> None:
        token = next(self._tokens)
        self.channel.send(messages.Store(token, name, meta), fds)
        self._done(token)

    def refused_store(self, name: str, fds: tuple[int, ...]) -> str:
        """The error of a store that fails."""
        self.channel.send(messages.Store(next(self._tokens), name, b""), fds)
        answer, _ = self.channel.receive()
        assert isinstance(answer, messages.Done)
        return answer.error

    def drop(self, *names: str) -> None:
        token = next(self._tokens)
        self.channel.send(messages.Drop(token, [*names]))
        self._done(token)

    def fetch(self, prefix: str = "") -> tuple[dict[str, tuple[bytes, list[int]]], int]:
        """What is kept, with fds that the caller owns, and the pid of traps."""
        token = next(self._tokens)
        self.channel.send(messages.Fetch(token, prefix))
        held: dict[str, tuple[bytes, list[int]]] = {}
        while True:
            answer, fds = self.channel.receive()
            if isinstance(answer, messages.HeldEnd):
                assert answer.token == token
                return held, answer.traps_pid
            assert isinstance(answer, messages.Held)
            held[answer.name] = (answer.meta, fds)

    def names(self, prefix: str = "") -> set[str]:
        held, _ = self.fetch(prefix)
        for _, fds in held.values():
            for fd in fds:
                os.close(fd)
        return set(held)

    def traps_pid(self) -> int:
        return self.fetch("there is nothing of this name")[1]

    def start_traps(self, *argv: str, gap_limit_s: float = 60.0) -> None:
        token = next(self._tokens)
        self.channel.send(messages.StartTraps(token, [*argv], gap_limit_s))
        self._done(token)

    def stop_traps(self) -> None:
        token = next(self._tokens)
        self.channel.send(messages.StopTraps(token))
        self._done(token)

    def release(self) -> None:
        token = next(self._tokens)
        self.channel.send(messages.Release(token))
        self._done(token)


class RunningKeeper:
    """`python -m slim.broker.keeper`; a context manager that ends it and its traps."""

    def __init__(self, run_dir: Path, prefix: tuple[str, ...] = ()) -> None:
        self.path = str(run_dir / "keeper.sock")
        argv = [*prefix, sys.executable, "-m", "slim.broker.keeper", "--run-dir", str(run_dir)]
        self.process = subprocess.Popen(argv, stdin=subprocess.DEVNULL)

    def __enter__(self) -> RunningKeeper:
        try:
            eventually(self._listens, "the keeper listens")
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *_exception: object) -> None:
        if self.process.poll() is None:
            try:
                with self.client() as client:
                    client.release()
                self.process.wait(10)
            except (OSError, EOFError, subprocess.TimeoutExpired):
                self._end()
                raise

    def _end(self) -> None:
        self.process.kill()
        self.process.wait()

    def _listens(self) -> bool:
        assert self.process.poll() is None, "the keeper ended"
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
            return probe.connect_ex(self.path) == 0

    def client(self) -> KeeperClient:
        return KeeperClient(self.path)

    def fds(self) -> int:
        """How many files the keeper has open."""
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)
