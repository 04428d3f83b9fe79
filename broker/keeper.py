"""The keeper: a small process in a session of its own that outlives slimd.

It holds what must not die with slimd: every seccomp listener fd (the last reference to one gone,
every trapped call of its container fails with ENOSYS for ever), retained overlay listeners, the
memfds. It starts traps and starts it again. It holds names, bytes and fds, and looks into them
only when there has been no traps for the gap limit: then it answers calls itself (gap.py).
`python -m slim.broker.keeper --run-dir DIR`.
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
from typing import TYPE_CHECKING, TypeVar

import msgspec

from slim.broker import log as logs
from slim.broker.errors import SyscallError
from slim.broker.gap import Gap
from slim.broker.kernel.namespaces import own_netns_cookie
from slim.broker.kernel.sock_diag import find_tcp
from slim.broker.listeners import ListenerRecord
from slim.broker.local import messages, seqpacket, states

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

log = logging.getLogger(__name__)

BACK_OFF_FIRST_S = 0.05
BACK_OFF_LAST_S = 5.0
STABLE_S = 10.0
"""A traps that lived so long starts again at once when it ends."""
SERVED_S = 1.0
"""A traps that lived so long has answered what waited; one that a call kills dies of it sooner."""
GAP_LIMIT_S = 30.0
"""Until control says otherwise."""

_decoder: msgspec.msgpack.Decoder[messages.KeeperRequest] = msgspec.msgpack.Decoder(
    messages.KeeperRequest
)
_State = TypeVar("_State", bound=msgspec.Struct)
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
        self.missing_since: float | None = None
        """time.monotonic() when there was one last that served; None: nobody ever missed one."""

    @property
    def pid(self) -> int:
        return self._process.pid if self._process else 0

    def want(self, argv: list[str]) -> None:
        self._argv = argv
        if self._process is None:
            if self.missing_since is None:
                self.missing_since = time.monotonic()
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
        self._miss()
        if not self._argv:
            return
        if self._lived_s() > STABLE_S:
            self._back_off = BACK_OFF_FIRST_S
        self._try_again()

    def _miss(self) -> None:
        # One that ends again and again without serving is missed from its first end on.
        if self.missing_since is None or self._lived_s() > SERVED_S:
            self.missing_since = time.monotonic()

    def _lived_s(self) -> float:
        return time.monotonic() - self._started

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
        self._miss()


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
        self._gap = Gap(own_netns_cookie(), self._vacate)
        self._gap_limit_s = GAP_LIMIT_S
        self._serving_pid = 0
        """The traps that has fetched what it needs, and answers calls."""
        self._selector.register(self._gap, selectors.EVENT_READ, None)
        self._is_released = False
        """slimd is gone for good: this ends with the last container."""
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
        while not (self._is_released and not len(self._gap)):
            for key, _ in self._selector.select(self._wait_s()):
                if key.fileobj is self._listener:
                    self._accept()
                elif key.fileobj is self._wake_reader:
                    self._drain_wakeups()
                elif key.fileobj is self._gap:
                    self._gap.serve()
                else:
                    self._serve(key.data)
            self._traps.reap()
            self._traps.start_if_due()
            self._open_gap_if_due()
        self._gap.close()
        self._path.unlink(missing_ok=True)

    def _wait_s(self) -> float | None:
        """Until something is due; None: nothing will be."""
        due = [self._traps.start_at, None if self._gap.is_open else self._gap_at()]
        times = [at for at in due if at is not None]
        return max(0.0, min(times) - time.monotonic()) if times else None

    # --- the gap ------------------------------------------------------------------------------

    def _gap_at(self) -> float | None:
        """time.monotonic() when calls are to be answered here; None while traps does."""
        if self._traps.missing_since is None or self._serving_pid == self._traps.pid != 0:
            return None
        return self._traps.missing_since + self._gap_limit_s

    def _open_gap_if_due(self) -> None:
        at = self._gap_at()
        if at is None or self._gap.is_open or time.monotonic() < at:
            return
        self._begin_gap()
        log.error(
            "no traps for %g s: calls go over the overlay, or fail where that is not allowed",
            self._gap_limit_s,
        )

    def _begin_gap(self) -> None:
        # Whatever it is that runs now: the next traps to fetch is the one that serves.
        self._serving_pid = 0
        self._gap.begin(self._containers())

    def _close_gap(self) -> None:
        if self._gap.is_open:
            self._gap.end()
            log.warning("traps is back and answers calls")

    def _containers(self) -> list[tuple[int, states.WorkloadState]]:
        """Every seccomp listener, lent, with its workload."""
        workloads = {
            state.cookie: state for _, state in self._read("workload/", states.WorkloadState)
        }
        return [
            (kept.fds[0], workloads[state.workload])
            for kept, state in self._read("container/", states.ContainerState)
            if kept.fds and state.workload in workloads
        ]

    def _read(self, prefix: str, kind: type[_State]) -> Iterator[tuple[Kept, _State]]:
        """Everything kept under names that start so, with what its bytes say."""
        for name, kept in [*self._kept.items()]:
            if name.startswith(prefix):
                try:
                    yield kept, msgspec.msgpack.decode(kept.meta, type=kind)
                except msgspec.DecodeError as error:
                    # Whatever was stored, the keeper must go on holding the rest.
                    log.error("%s is not understood: %s", name, error)

    def _vacate(self, workload: int, port: int) -> None:
        """Close retained listeners whose programs have ended: nobody else looks after them now."""
        for _, listener in self._read("retained/", ListenerRecord):
            if (listener.workload, listener.port) != (workload, port):
                continue
            try:
                is_alive = find_tcp(listener.cookie, listener.host, None) is not None
            except SyscallError as error:
                log.warning("listener %s: not known whether it lives: %s", listener.local, error)
                continue
            if not is_alive:
                self._forget(f"retained/{listener.cookie}")

    # --- clients ------------------------------------------------------------------------------

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
            try:
                request, fds = client.receive()
            except seqpacket.FdsLost as lost:
                self._refuse(client, lost.message)
                return
            self._carry_out(client, request, fds)
        except (OSError, EOFError) as error:
            if not isinstance(error, EOFError):
                log.warning("a client of the keeper is dropped: %s", error)
            self._selector.unregister(client.sock)
            client.close()

    def _refuse(self, client: _Client, request: messages.KeeperRequest) -> None:
        """There was no fd left for what was to be kept: say so, and go on holding the rest."""
        log.error("no fd left: %s not carried out", type(request).__name__)
        client.send(messages.Done(request.token, "no fd left (RLIMIT_NOFILE)"))

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
                pid, _, _ = seqpacket.peer_credentials(client.sock)
                if pid == self._traps.pid:
                    # From here on it answers; what was received here and held, it makes come again.
                    self._serving_pid = pid
                    self._close_gap()
                self._answer_fetch(client, request)
            case messages.StartTraps():
                self._is_released = False
                self._gap_limit_s = request.gap_limit_s
                self._traps.want(request.argv)
                client.send(messages.Done(request.token))
            case messages.StopTraps():
                self._traps.stop()
                client.send(messages.Done(request.token))
            case messages.Release():
                self._release()
                client.send(messages.Done(request.token))
        for fd in fds:
            os.close(fd)

    def _release(self) -> None:
        """Containers that still run are let go: from now on their calls take the overlay."""
        self._traps.stop()
        self._is_released = True
        # Plain peers and OCI runtimes are refused from now on, and not left waiting.
        for name in [name for name in self._kept if name.startswith(("retained/", "agent/"))]:
            self._forget(name)
        if not self._gap.is_open:
            self._begin_gap()
        log.info("released; %d containers are left", len(self._gap))

    def _forget(self, name: str) -> None:
        kept = self._kept.pop(name, None)
        if kept is not None:
            for fd in kept.fds:
                self._gap.leave(fd)
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
