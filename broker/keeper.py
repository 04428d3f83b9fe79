"""The keeper: a small process in a session of its own that outlives slimd.

It holds what must not die with slimd: every seccomp listener fd (the last reference to one gone,
every trapped call of its container fails with ENOSYS for ever), retained overlay listeners, the
memfds. It starts traps and starts it again. It understands nothing of what it holds: names, bytes
and fds. `python -m slim.broker.keeper --run-dir DIR`.
"""

from __future__ import annotations

import argparse
import errno
import logging
import os
import selectors
import signal
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from slim.broker import log as logs
from slim.broker.local import messages, seqpacket

if TYPE_CHECKING:
    from collections.abc import Sequence

log = logging.getLogger(__name__)

BACK_OFF_FIRST_S = 0.05
BACK_OFF_LAST_S = 5.0
STABLE_S = 10.0
"""A traps that lived so long starts again at once when it ends."""

_decoder: msgspec.msgpack.Decoder[messages.KeeperRequest] = msgspec.msgpack.Decoder(
    messages.KeeperRequest
)
_Client = seqpacket.Channel[messages.KeeperRequest]


@dataclass(slots=True)
class Kept:
    """One named thing; owns its fds."""

    meta: bytes
    fds: list[int]

    def close(self) -> None:
        for fd in self.fds:
            os.close(fd)


class TrapsProcess:
    """Starts traps, notices its end, starts it again with back-off."""

    def __init__(self) -> None:
        self._argv: list[str] = []
        self._process: subprocess.Popen[bytes] | None = None
        self._started = 0.0
        self._back_off = BACK_OFF_FIRST_S
        self.start_at: float | None = None
        """time.monotonic() of the next start; None: not wanted, or running."""

    @property
    def pid(self) -> int:
        return self._process.pid if self._process else 0

    def want(self, argv: list[str]) -> None:
        self._argv = argv
        if self._process is None:
            self._back_off = BACK_OFF_FIRST_S
            self.start_at = time.monotonic()

    def start_if_due(self) -> None:
        if self.start_at is None or time.monotonic() < self.start_at:
            return
        self.start_at = None
        self._started = time.monotonic()
        try:
            # Every fd of ours is close-on-exec; traps asks for what it needs.
            self._process = subprocess.Popen(self._argv, stdin=subprocess.DEVNULL)
        except OSError as error:
            # Whatever happens to the program's file, the keeper must go on holding.
            log.error("traps does not start: %s", error)
            self._try_again()

    def reap(self) -> None:
        """The process may have ended: if it is wanted, it starts again."""
        if self._process is None or self._process.poll() is None:
            return
        log.warning("traps (pid %d) ended with %d", self.pid, self._process.returncode)
        self._process = None
        if not self._argv:
            return
        if time.monotonic() - self._started > STABLE_S:
            self._back_off = BACK_OFF_FIRST_S
        self._try_again()

    def _try_again(self) -> None:
        self.start_at = time.monotonic() + self._back_off
        self._back_off = min(2 * self._back_off, BACK_OFF_LAST_S)

    def stop(self, time_limit_s: float = 1.0) -> None:
        """SIGTERM, and SIGKILL when it does not end in time; it stays ended."""
        self._argv = []
        self.start_at = None
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(time_limit_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None


class Keeper:
    """The store and its clients (control and traps)."""

    def __init__(self, run_dir: Path) -> None:
        self._kept: dict[str, Kept] = {}
        self._traps = TrapsProcess()
        self._selector = selectors.DefaultSelector()
        self._path = run_dir / "keeper.sock"
        self._listener = seqpacket.listen(str(self._path), mode=0o600)
        self._listener.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ, None)
        self._running = True
        # Signals end the wait: SIGCHLD to look after traps.
        self._wake_reader, self._wake_writer = socket.socketpair()
        for end in (self._wake_reader, self._wake_writer):
            end.setblocking(False)
        signal.set_wakeup_fd(self._wake_writer.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        # The keeper ends on purpose only; a terminal's or a shell's signals are meant for slimd.
        for ignored in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGPIPE):
            signal.signal(ignored, signal.SIG_IGN)
        self._selector.register(self._wake_reader, selectors.EVENT_READ, None)

    def run(self) -> None:
        while self._running:
            wait = None
            if self._traps.start_at is not None:
                wait = max(0.0, self._traps.start_at - time.monotonic())
            for key, _ in self._selector.select(wait):
                if key.fileobj is self._listener:
                    self._accept()
                elif key.fileobj is self._wake_reader:
                    self._drain_wakeups()
                else:
                    self._serve(key.data)
            self._traps.reap()
            self._traps.start_if_due()
        self._path.unlink(missing_ok=True)

    def _drain_wakeups(self) -> None:
        try:
            self._wake_reader.recv(4096)
        except BlockingIOError:
            return

    def _accept(self) -> None:
        sock = seqpacket.accept_trusted(self._listener)
        if sock is None:
            return
        # A reader of ours that never reads must not stop the others: it gets an error instead.
        sock.settimeout(1.0)
        client = seqpacket.Channel(sock, _decoder)
        self._selector.register(sock, selectors.EVENT_READ, client)

    def _serve(self, client: _Client) -> None:
        try:
            request, fds = client.receive()
            self._carry_out(client, request, fds)
        except (OSError, EOFError) as error:
            if not isinstance(error, EOFError):
                log.warning("a client of the keeper is dropped: %s", error)
            self._selector.unregister(client.sock)
            client.close()

    def _carry_out(self, client: _Client, request: messages.KeeperRequest, fds: list[int]) -> None:
        match request:
            case messages.Store():
                self._forget(request.name)
                self._kept[request.name] = Kept(request.meta, fds)
                client.send(messages.Done(request.token))
                return
            case messages.Drop():
                for name in request.names:
                    self._forget(name)
                client.send(messages.Done(request.token))
            case messages.Fetch():
                self._answer_fetch(client, request)
            case messages.StartTraps():
                self._traps.want(request.argv)
                client.send(messages.Done(request.token))
            case messages.StopTraps():
                self._traps.stop()
                client.send(messages.Done(request.token))
            case messages.Release():
                self._traps.stop()
                self._running = False
                client.send(messages.Done(request.token))
        for fd in fds:
            os.close(fd)

    def _forget(self, name: str) -> None:
        kept = self._kept.pop(name, None)
        if kept is not None:
            kept.close()

    def _answer_fetch(self, client: _Client, request: messages.Fetch) -> None:
        for name, kept in self._kept.items():
            if name.startswith(request.prefix):
                client.send(messages.Held(name, kept.meta), tuple(kept.fds))
        client.send(messages.HeldEnd(request.token, os.getpid(), self._traps.pid))


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the process."""
    parser = argparse.ArgumentParser(prog="slim-keeper")
    parser.add_argument("--run-dir", required=True, type=Path)
    parser.add_argument("--log-level", default="info")
    parser.add_argument("--log-format", default="auto")
    options = parser.parse_args(arguments)
    logs.configure(options.log_level, options.log_format)
    try:
        keeper = Keeper(options.run_dir)
    except OSError as error:
        raise SystemExit(
            f"keeper: cannot listen in {options.run_dir}: {os.strerror(error.errno or errno.EIO)}"
        ) from None
    keeper.run()


if __name__ == "__main__":
    main()
