"""What slim-run needs of slimd: run.sock, and a supervisor that lets every trapped call go on."""

from __future__ import annotations

import contextlib
import os
import select
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import msgspec

from slim.broker.kernel.seccomp_filter import build_filter
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
from support.supervising import Supervisor

if TYPE_CHECKING:
    from pathlib import Path

Behaviour: TypeAlias = Literal["acknowledge", "refuse", "stay silent", "hang up"]
"""What follows on Register."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Registration:
    """One Register as it arrived."""

    message: Register
    pid: int
    """Of the process behind the pidfd."""
    uid: int
    netns: int
    """Inode number of the network namespace."""


class FakeSlimd:
    """A thread behind `run_dir`/run.sock; a context manager.

    Give `namespace` (a path) for PrepareNamespace to be answered with.
    """

    def __init__(
        self,
        run_dir: Path,
        behaviour: Behaviour = "acknowledge",
        *,
        protocol: int = PROTOCOL,
        namespace: str | None = None,
    ) -> None:
        self.run_dir = run_dir
        self.registrations: list[Registration] = []
        self.prepared: list[PrepareNamespace] = []
        self.supervisors: list[Supervisor] = []
        self.registered = threading.Event()
        self._behaviour = behaviour
        self._protocol = protocol
        self._namespace = namespace
        self._program = build_filter("portable")
        self._decoder: msgspec.msgpack.Decoder[RunRequest] = msgspec.msgpack.Decoder(RunRequest)
        self._channels: list[seqpacket.Channel[RunRequest]] = []
        self._listening = seqpacket.listen(str(run_dir / "run.sock"), mode=0o666)
        self._stop, self._stopping = os.pipe2(os.O_CLOEXEC)
        self._thread = threading.Thread(target=self._serve, name="fake slimd")

    def __enter__(self) -> FakeSlimd:
        self._thread.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        os.write(self._stopping, b"x")
        self._thread.join()
        for supervisor in self.supervisors:
            supervisor.close()
        for channel in self._channels:
            channel.close()
        self._listening.close()
        os.close(self._stop)
        os.close(self._stopping)

    def _serve(self) -> None:
        while True:
            sources: list[Any] = [self._stop, self._listening, *self._channels]
            ready, _, _ = select.select(sources, [], [])
            if self._stop in ready:
                return
            for channel in [channel for channel in self._channels if channel in ready]:
                self._answer(channel)
            if self._listening in ready:
                sock, _ = self._listening.accept()
                channel = seqpacket.Channel(sock, self._decoder)
                self._channels.append(channel)
                with contextlib.suppress(BrokenPipeError):
                    channel.send(Offer(self._protocol, self._program))

    def _answer(self, channel: seqpacket.Channel[RunRequest]) -> None:
        try:
            message, fds = channel.receive()
        except (EOFError, ConnectionResetError):
            self._forget(channel)
            return
        if isinstance(message, Describe):
            channel.send(Offer(self._protocol, self._program))
            return
        if isinstance(message, PrepareNamespace):
            self._prepare(channel, message)
            return
        netns, pidfd, listener = fds
        self.registrations.append(
            Registration(
                message=message,
                pid=_pid_behind(pidfd),
                uid=seqpacket.peer_credentials(channel.sock)[1],
                netns=os.fstat(netns).st_ino,
            )
        )
        os.close(netns)
        os.close(pidfd)
        match self._behaviour:
            case "acknowledge":
                self.supervisors.append(Supervisor(listener))
                channel.send(Ack("container-1"))
            case "refuse":
                os.close(listener)
                channel.send(Refuse("the host's own namespace", "use --netns"))
            case "stay silent":
                self.supervisors.append(Supervisor(listener))
            case "hang up":
                os.close(listener)
                self._forget(channel)
        self.registered.set()

    def _prepare(self, channel: seqpacket.Channel[RunRequest], message: PrepareNamespace) -> None:
        self.prepared.append(message)
        if self._namespace is None:
            channel.send(Refuse(f"no overlay {message.overlay}", "see slimctl overlays"))
            return
        fd = os.open(self._namespace, os.O_RDONLY | os.O_CLOEXEC)
        channel.send(Namespace("prepared-1"), (fd,))
        os.close(fd)

    def _forget(self, channel: seqpacket.Channel[RunRequest]) -> None:
        self._channels.remove(channel)
        channel.close()


def _pid_behind(pidfd: int) -> int:
    with open(f"/proc/self/fdinfo/{pidfd}") as fdinfo:
        for line in fdinfo:
            if line.startswith("Pid:"):
                return int(line[4:])
    raise AssertionError("not a pidfd")
