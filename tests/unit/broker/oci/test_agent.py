"""oci.sock: who may speak there, and what becomes of every message that a runtime could send."""

from __future__ import annotations

import array
import asyncio
import functools
import gc
import json
import logging
import os
import socket
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import pytest

from slim.broker.errors import ControlError
from slim.broker.local import messages, seqpacket, states
from slim.broker.oci import agent, listener
from slim.broker.oci.agent import OciAgent
from slim.broker.oci.process_state import MAX_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from slim.broker.registry import Membership, Workload

HOST, CONTAINER = 1, 77
PID, GONE = 4000, 4001


@dataclass
class KnownWorkload:
    """As much of a registry.Workload as the agent looks at."""

    state: states.WorkloadState
    netns_fd: int


def known(cookie: int) -> KnownWorkload:
    state = states.WorkloadState(
        cookie=cookie,
        name="known",
        namespace="shop",
        labels={"app": "known"},
        overlay="blue",
        networks=[],
        addresses=[],
        index=0,
        isolated_ingress=False,
        isolated_egress=False,
        fail_mode="closed",
        prepared=None,
    )
    return KnownWorkload(state, 99)


@dataclass
class FakeContainers:
    """Control's part."""

    known: dict[str, list[KnownWorkload]] = field(default_factory=dict)
    registered: list[tuple[messages.Register, states.ContainerState]] = field(default_factory=list)
    listeners: list[str] = field(default_factory=list)
    memberships: list[Membership] = field(default_factory=list)
    refuses: str = ""

    async def register(
        self,
        claim: messages.Register,
        container: states.ContainerState,
        fds: list[int],
        membership: Membership = "required",
    ) -> None:
        if self.refuses:
            raise ControlError(self.refuses, hint="do this")
        self.registered.append((claim, container))
        self.memberships.append(membership)
        self.listeners.append(os.readlink(f"/proc/self/fd/{fds[1]}"))

    def find_runtime(self, runtime_id: str) -> list[Workload]:
        return cast("list[Workload]", self.known.get(runtime_id, []))


class Runtime:
    """runc's end of one connection."""

    def __init__(self, path: Path) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(str(path))

    def send(self, raw: bytes, *files: Path) -> None:
        fds = array.array("i", [os.open(file, os.O_RDONLY) for file in files])
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)] if files else []
        try:
            self.sock.sendmsg([raw], rights)
        finally:
            for fd in fds:
                os.close(fd)


class Stage:
    """An agent in a directory; who the peer is and what its processes are is the test's."""

    def __init__(self, directory: Path, caplog: pytest.LogCaptureFixture) -> None:
        self.path = directory / "oci.sock"
        self.listener, self.other = directory / "listener", directory / "other"
        self.netns = directory / "netns"
        for file in (self.listener, self.other, self.netns):
            file.touch()
        self.containers = FakeContainers()
        self.uid = 0
        self.cookie = CONTAINER
        self._caplog = caplog

    def open_network(self, pid: int) -> int | None:
        return None if pid == GONE else os.open(self.netns, os.O_RDONLY | os.O_CLOEXEC)

    def run(self, *steps: Callable[[Runtime], None]) -> None:
        """One runtime that takes these steps, then keeps its end open until the agent is done;
        afterwards no fd is left."""

        async def main() -> None:
            server = OciAgent(listener.listen(str(self.path)), HOST, self.containers)
            runtime = Runtime(self.path)
            try:
                for step in steps:
                    await asyncio.sleep(0.01)
                    step(runtime)
                await asyncio.sleep(0.01)
                async with asyncio.timeout(10):
                    await server.wait()
            finally:
                runtime.sock.close()
                server.close()

        # What earlier tests left to the collector is not ours to count.
        gc.collect()
        before = os.listdir("/proc/self/fd")
        asyncio.run(main())
        assert len(os.listdir("/proc/self/fd")) == len(before)

    def registers(self, raw: bytes) -> tuple[messages.Register, states.ContainerState]:
        self.run(lambda runtime: runtime.send(raw, self.listener))
        ((claim, container),) = self.containers.registered
        assert self.containers.listeners == [str(self.listener)]
        assert self.refusals() == []
        return claim, container

    def refuses(self, *steps: Callable[[Runtime], None]) -> str:
        """The one line that is logged."""
        self.run(*steps)
        assert self.containers.registered == []
        (line,) = self.refusals()
        return line

    def refusals(self) -> list[str]:
        return [
            record.message
            for record in self._caplog.records
            if record.levelno >= logging.WARNING and record.name.startswith("slim.")
        ]


@pytest.fixture
def stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> Stage:
    stage = Stage(tmp_path, caplog)
    monkeypatch.setattr(seqpacket, "peer_credentials", lambda _: (321, stage.uid, stage.uid))
    monkeypatch.setattr(agent, "open_network", stage.open_network)
    monkeypatch.setattr(agent, "workload_cookie", lambda _: stage.cookie)
    return stage


def message(pid: int = PID, state_pid: int | None = None, **state: Any) -> bytes:
    first = pid if state_pid is None else state_pid
    whole = {"fds": ["seccompFd"], "pid": pid, "state": {"id": "web", "pid": first} | state}
    return json.dumps(whole).encode()


def test_a_container_is_registered_with_its_identity(stage: Stage) -> None:
    claim, container = stage.registers(message(annotations={"slim.label.app": "web"}))
    assert (claim.workload, claim.namespace, claim.labels) == (None, "default", {"app": "web"})
    assert (container.runtime_id, container.workload, container.pid) == ("web", CONTAINER, PID)


def test_a_message_may_come_in_pieces_before_its_end_of_file(stage: Stage) -> None:
    raw = message()
    stage.run(
        lambda runtime: runtime.send(raw[:5], stage.listener),
        lambda runtime: runtime.send(raw[5:40]),
        lambda runtime: runtime.send(raw[40:]),
    )
    assert len(stage.containers.registered) == 1


def test_the_listener_may_be_one_of_several_fds(stage: Stage) -> None:
    raw = message().replace(b'["seccompFd"]', b'["other", "seccompFd", "other"]')
    stage.run(lambda runtime: runtime.send(raw, stage.other, stage.listener, stage.other))
    assert stage.containers.listeners == [str(stage.listener)]


def test_a_large_message_is_taken(stage: Stage) -> None:
    raw = message(annotations={"other": "x" * (MAX_BYTES - 1000)})
    stage.run(*_in_pieces(raw, stage.listener))
    assert len(stage.containers.registered) == 1


def test_a_message_beyond_the_limit_is_refused(stage: Stage) -> None:
    raw = message(annotations={"other": "x" * MAX_BYTES})
    assert "larger than" in stage.refuses(*_in_pieces(raw, stage.listener))


def _in_pieces(raw: bytes, listener: Path) -> list[Callable[[Runtime], None]]:
    size = 100_000
    pieces = [raw[at : at + size] for at in range(0, len(raw), size)]

    def send(runtime: Runtime, number: int) -> None:
        try:
            runtime.send(pieces[number], *([] if number else [listener]))
        except (BrokenPipeError, ConnectionResetError):
            assert number == len(pieces) - 1

    return [functools.partial(send, number=number) for number in range(len(pieces))]


def test_an_exec_that_names_no_process_joins_its_container(stage: Stage) -> None:
    stage.containers.known["web"] = [known(CONTAINER)]
    claim, container = stage.registers(message(pid=0, annotations={"slim.label.app": "lie"}))
    assert (claim.workload, claim.namespace, claim.labels) == ("known", "shop", {"app": "known"})
    assert (container.workload, container.pid) == (CONTAINER, 0)


def test_an_exec_that_is_over_joins_its_container(stage: Stage) -> None:
    stage.containers.known["web"] = [known(CONTAINER)]
    _, container = stage.registers(message(pid=GONE))
    assert container.workload == CONTAINER


def test_the_same_id_of_two_runtimes_is_told_apart_by_the_process(stage: Stage) -> None:
    stage.containers.known["web"] = [known(CONTAINER + 1)]
    claim, container = stage.registers(message())
    assert (claim.workload, container.workload) == (None, CONTAINER)


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b"{", "hung up after 1 bytes"),
        (b"", "hung up after 0 bytes"),
        (b"{}", "no ContainerProcessState"),
        (b"[1, 2]", "no ContainerProcessState"),
        (b'{"fds": ["seccompFd"], "state": {"id": 5}}', "no ContainerProcessState"),
        (message() + b"{}", "more than one JSON object"),
        (message().replace(b"seccompFd", b"fd"), "not one but 0"),
        (message(annotations={"slim.label.app": "a\nb"}), "control characters"),
        (message(annotations={"slim.workload": "x" * 300}), "too long"),
        (message(annotations={"slim.colour": "red"}), "not known"),
        (message(pid=GONE), "its process has ended"),
        (message(pid=0), "gives no process id"),
    ],
)
def test_what_cannot_be_registered_is_refused_in_one_line(
    stage: Stage, raw: bytes, why: str
) -> None:
    def send(runtime: Runtime) -> None:
        if raw:
            runtime.send(raw, stage.listener)
        runtime.sock.shutdown(socket.SHUT_WR)

    assert why in stage.refuses(send)


def test_an_id_that_two_containers_have_needs_a_process(stage: Stage) -> None:
    stage.containers.known["web"] = [known(CONTAINER), known(CONTAINER + 1)]
    refusal = stage.refuses(lambda runtime: runtime.send(message(pid=0), stage.listener))
    assert "2 containers have that id" in refusal


def test_fds_that_were_not_announced_are_refused_and_closed(stage: Stage) -> None:
    refusal = stage.refuses(lambda runtime: runtime.send(message(), stage.listener, stage.other))
    assert "names 1 fds and sent 2" in refusal


def test_too_many_fds_are_refused_and_closed(stage: Stage) -> None:
    files = [stage.listener] * (agent.MAX_FDS + 1)
    assert "not all of its fds" in stage.refuses(lambda runtime: runtime.send(message(), *files))


def test_only_roots_runtimes_may_speak(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    stage.uid = 1000
    refusal = stage.refuses(lambda runtime: None)
    assert "only root's runtimes" in refusal
    assert "uid 1000" in refusal


def test_the_socket_is_roots_alone(stage: Stage) -> None:
    with listener.listen(str(stage.path)):
        assert stage.path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("annotations", "membership"),
    [
        ({}, "optional"),
        ({"slim.overlay": "x"}, "required"),
        ({"slim.fail-mode": "closed"}, "required"),
    ],
)
def test_an_overlay_is_required_where_something_asks_for_it(
    stage: Stage, annotations: dict[str, str], membership: str
) -> None:
    stage.registers(message(annotations=annotations))
    assert stage.containers.memberships == [membership]


def test_a_container_in_the_hosts_own_network_is_a_bystander(stage: Stage) -> None:
    stage.cookie = HOST
    stage.registers(message())
    assert stage.containers.memberships == ["never"]


@pytest.mark.parametrize("key", ["slim.overlay", "slim.fail-mode"])
def test_in_the_hosts_own_network_nothing_that_needs_slim_is_promised(
    stage: Stage, key: str
) -> None:
    stage.cookie = HOST
    raw = message(annotations={key: "closed"})
    refusal = stage.refuses(lambda runtime: runtime.send(raw, stage.listener))
    assert "host's own network" in refusal


def test_control_may_refuse(stage: Stage) -> None:
    stage.containers.refuses = "no address on any overlay"
    refusal = stage.refuses(lambda runtime: runtime.send(message(), stage.listener))
    assert refusal == (
        f"container 'web' (pid {PID}) is refused: no address on any overlay (do this)"
    )


def test_a_sender_that_stops_does_not_keep_the_others_waiting(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent, "CONVERSATION_LIMIT_S", 0.3)
    slow: list[Runtime] = []

    def stop_halfway(_: Runtime) -> None:
        slow.append(Runtime(stage.path))
        slow[0].send(message()[:10], stage.listener)

    def close(_: Runtime) -> None:
        assert len(stage.containers.registered) == 1
        slow[0].sock.close()

    def register(runtime: Runtime) -> None:
        runtime.send(message(), stage.listener)

    stage.run(stop_halfway, register, close)
    (line,) = stage.refusals()
    assert "hung up" in line


def test_a_sender_that_never_ends_is_refused(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent, "CONVERSATION_LIMIT_S", 0.05)
    refusal = stage.refuses(lambda runtime: runtime.send(message()[:10], stage.listener))
    assert "not done within 0.05 s" in refusal
