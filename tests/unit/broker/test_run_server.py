"""run.sock: what callers may claim, by the credentials that the kernel notes."""

from __future__ import annotations

import asyncio
import gc
import os
import resource
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from slim.broker import claims, conversations, run_server
from slim.broker.config import NamespaceConfig, SlimRunConfig
from slim.broker.errors import ControlError
from slim.broker.local import messages, seqpacket, states
from slim.broker.run_server import Programs, RunServer

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Coroutine
    from pathlib import Path

    from slim.broker.decisions import Identity

HOST, CONTAINER = 1, 77
PROGRAM, LIMITED_PROGRAM = b"a filter", b"another"
PROGRAMS = Programs(PROGRAM, LIMITED_PROGRAM)
MEMBER, STRANGER, GROUP = 1000, 1001, "slim-test"
decoder: msgspec.msgpack.Decoder[messages.RunAnswer] = msgspec.msgpack.Decoder(messages.RunAnswer)


@dataclass
class FakeContainers:
    """Control's part."""

    registered: list[tuple[messages.Register, states.ContainerState]] = field(default_factory=list)
    discarded: list[str] = field(default_factory=list)
    refuses: str = ""
    limited: frozenset[str] = frozenset()
    """Names of workloads that a limit is for."""

    async def prepare_namespace(self, overlay: str, address: str | None) -> tuple[str, int]:
        return "prepared-1", os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)

    async def discard_namespace(self, name: str) -> None:
        self.discarded.append(name)

    def may_limit(self, workload: Identity | None) -> bool:
        return bool(self.limited) and (workload is None or workload.workload in self.limited)

    async def register(
        self, claim: messages.Register, container: states.ContainerState, fds: list[int]
    ) -> None:
        if self.refuses:
            raise ControlError(self.refuses, hint="do this")
        assert len(fds) == 2
        assert all(os.fstat(fd) for fd in fds)
        self.registered.append((claim, container))


class Caller:
    """slim-run's end of one conversation."""

    def __init__(self, path: Path) -> None:
        sock = seqpacket.connect(str(path))
        sock.setblocking(False)
        self.channel = seqpacket.Channel(sock, decoder)

    async def receive(self) -> Any:
        while True:
            try:
                message, fds = self.channel.receive()
            except BlockingIOError:
                await asyncio.sleep(0.005)
                continue
            for fd in fds:
                os.close(fd)
            return message

    async def register(self, netns: Path, *, count: int = 3, **claims: Any) -> Any:
        """Register with that file as the namespace; gives the answer, None for hanging up."""
        claim: dict[str, Any] = {
            "workload": None,
            "namespace": "default",
            "labels": {},
            "overlay": None,
            "fail_mode": "open",
            "command": ["true"],
            "prepared": None,
        }
        fd = os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
        self.channel.send(messages.Register(**(claim | claims)), (fd,) * count)
        os.close(fd)
        try:
            return await self.receive()
        except EOFError:
            return None


class Stage:
    """A server in a directory; the caller's uid and the namespaces' cookies are the test's."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.path = directory / "run.sock"
        self.containers = FakeContainers()
        self.uid = 0
        self.host, self.container, self.other = (
            directory / name for name in ("host", "container", "other")
        )
        for file in (self.host, self.container, self.other):
            file.touch()
        self.config = SlimRunConfig(
            group=GROUP,
            namespaces=(
                NamespaceConfig(netns=directory / "gone", workload="x", namespace="x", labels={}),
                NamespaceConfig(
                    netns=self.container, workload="web", namespace="shop", labels={"app": "web"}
                ),
            ),
        )

    def cookie_of(self, fd: int) -> int:
        inode = os.fstat(fd).st_ino
        if inode == self.host.stat().st_ino:
            return HOST
        if inode == self.other.stat().st_ino:
            return CONTAINER + 1
        if inode == self.container.stat().st_ino:
            return CONTAINER
        raise OSError(22, "not a namespace")

    def credentials(self, _sock: socket.socket) -> tuple[int, int, int]:
        return 4321, self.uid, self.uid

    def run(self, test: Callable[[Caller], Coroutine[Any, Any, Any]]) -> Any:
        """One conversation after its Offer; then everything must be closed."""

        async def main() -> Any:
            server = RunServer(str(self.path), PROGRAMS, HOST, self.config, self.containers)
            caller = Caller(self.path)
            try:
                async with asyncio.timeout(10):
                    program = b"" if self.containers.limited else PROGRAM
                    assert await caller.receive() == messages.Offer(messages.PROTOCOL, program)
                    return await test(caller)
            finally:
                caller.channel.close()
                await server.wait()
                server.close()

        # What earlier tests left to the collector is not ours to count.
        gc.collect()
        before = len(os.listdir("/proc/self/fd"))
        result = asyncio.run(main())
        assert len(os.listdir("/proc/self/fd")) == before
        return result


class FakeGroups:
    """The group database: GROUP has one member by name, and is nobody's first group."""

    gr_gid = 4000

    def getgrnam(self, name: str) -> FakeGroups:
        if name != GROUP:
            raise KeyError(name)
        return self


class FakeUsers:
    pw_name = ""

    def getpwuid(self, uid: int) -> FakeUsers:
        if uid not in (MEMBER, STRANGER):
            raise KeyError(uid)
        user = FakeUsers()
        user.pw_name = str(uid)
        return user


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    stage = Stage(tmp_path)
    monkeypatch.setattr(claims, "netns_cookie_of", stage.cookie_of)
    monkeypatch.setattr(seqpacket, "peer_credentials", stage.credentials)
    monkeypatch.setattr(run_server, "grp", FakeGroups())
    monkeypatch.setattr(run_server, "pwd", FakeUsers())
    groups = {str(MEMBER): [MEMBER, FakeGroups.gr_gid], str(STRANGER): [STRANGER]}
    monkeypatch.setattr(os, "getgrouplist", lambda name, _: groups[name])
    return stage


def claim_of(stage: Stage) -> messages.Register:
    ((claim, _),) = stage.containers.registered
    return claim


def assert_refused(stage: Stage, answer: Any, words: str) -> None:
    assert isinstance(answer, messages.Refuse), answer
    assert words in answer.message
    assert stage.containers.registered == []


# --- root -------------------------------------------------------------------------------------


def test_root_may_claim_anything(stage: Stage) -> None:
    answer = stage.run(
        lambda caller: caller.register(stage.other, workload="db", labels={"app": "db"})
    )
    assert isinstance(answer, messages.Ack)
    ((claim, container),) = stage.containers.registered
    assert (claim.workload, claim.labels) == ("db", {"app": "db"})
    assert container.container == answer.container
    assert (container.workload, container.pid) == (CONTAINER + 1, 4321)


def test_the_hosts_own_namespace_is_refused_even_to_root(stage: Stage) -> None:
    answer = stage.run(lambda caller: caller.register(stage.host))
    assert_refused(stage, answer, "host's own network namespace")


def test_a_file_that_is_no_namespace_is_refused(stage: Stage) -> None:
    (stage.directory / "plain").touch()
    answer = stage.run(lambda caller: caller.register(stage.directory / "plain"))
    assert_refused(stage, answer, "no network namespace")


def test_what_control_refuses_is_said_with_its_hint(stage: Stage) -> None:
    stage.containers.refuses = "the namespace already is workload 'db'"
    answer = stage.run(lambda caller: caller.register(stage.container))
    assert answer == messages.Refuse("the namespace already is workload 'db'", "do this")


# --- others -----------------------------------------------------------------------------------


def test_a_member_gets_exactly_what_is_declared(stage: Stage) -> None:
    stage.uid = MEMBER
    answer = stage.run(lambda caller: caller.register(stage.container, namespace="kube-system"))
    assert isinstance(answer, messages.Ack)
    claim = claim_of(stage)
    assert (claim.workload, claim.namespace) == ("web", "shop")
    assert claim.labels == {"app": "web"}


def test_a_member_may_repeat_what_is_declared(stage: Stage) -> None:
    stage.uid = MEMBER
    answer = stage.run(
        lambda caller: caller.register(stage.container, workload="web", labels={"app": "web"})
    )
    assert isinstance(answer, messages.Ack)


@pytest.mark.parametrize(
    "claims",
    [{"workload": "db"}, {"labels": {"app": "db"}}, {"labels": {"app": "web", "role": "admin"}}],
    ids=str,
)
def test_a_member_may_not_claim_another_identity(stage: Stage, claims: dict[str, Any]) -> None:
    stage.uid = MEMBER
    answer = stage.run(lambda caller: caller.register(stage.container, **claims))
    assert_refused(stage, answer, "declared as workload 'web'")


def test_a_member_may_not_enter_undeclared_namespaces(stage: Stage) -> None:
    stage.uid = MEMBER
    answer = stage.run(lambda caller: caller.register(stage.other))
    assert_refused(stage, answer, "declares that namespace")


def test_a_member_is_refused_the_hosts_namespace_even_if_declared(stage: Stage) -> None:
    stage.uid = MEMBER
    stage.config = SlimRunConfig(
        group=GROUP,
        namespaces=(NamespaceConfig(netns=stage.host, workload="x", namespace="x", labels={}),),
    )
    answer = stage.run(lambda caller: caller.register(stage.host))
    assert_refused(stage, answer, "host's own network namespace")


@pytest.mark.parametrize("uid", [STRANGER, 4_000_000], ids=["no member", "no user"])
def test_who_is_no_member_may_nothing(stage: Stage, uid: int) -> None:
    stage.uid = uid
    answer = stage.run(lambda caller: caller.register(stage.container))
    assert_refused(stage, answer, "not in the group")


def test_without_the_group_only_root_may(stage: Stage) -> None:
    stage.uid = MEMBER
    stage.config = SlimRunConfig(group="no-such-group", namespaces=stage.config.namespaces)
    answer = stage.run(lambda caller: caller.register(stage.container))
    assert_refused(stage, answer, "not in the group")


# --- prepared namespaces ----------------------------------------------------------------------


def prepare(**claims: Any) -> Callable[[Caller], Coroutine[Any, Any, Any]]:
    async def converse(caller: Caller) -> Any:
        caller.channel.send(messages.PrepareNamespace("blue", None))
        answer = await caller.receive()
        if not claims or not isinstance(answer, messages.Namespace):
            return answer
        return await caller.register(**claims)

    return converse


def test_root_may_have_a_namespace_made(stage: Stage) -> None:
    converse = prepare(netns=stage.container, prepared="prepared-1")
    assert isinstance(stage.run(converse), messages.Ack)
    assert stage.containers.discarded == []


def test_others_may_not(stage: Stage) -> None:
    stage.uid = MEMBER
    assert_refused(stage, stage.run(prepare()), "only root")


def test_a_caller_that_ends_leaves_no_namespace_behind(stage: Stage) -> None:
    assert stage.run(prepare()) == messages.Namespace("prepared-1")
    assert stage.containers.discarded == ["prepared-1"]


def test_a_namespace_prepared_for_another_is_refused(stage: Stage) -> None:
    answer = stage.run(lambda caller: caller.register(stage.container, prepared="prepared-9"))
    assert_refused(stage, answer, "not prepared for this caller")


def test_a_prepared_namespace_must_be_the_one_that_is_claimed(stage: Stage) -> None:
    assert_refused(stage, stage.run(prepare(netns=stage.container)), "not prepared")
    assert stage.containers.discarded == ["prepared-1"]


# --- hostile callers --------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 2, 4, 8])
def test_a_wrong_number_of_fds_ends_the_conversation(stage: Stage, count: int) -> None:
    assert stage.run(lambda caller: caller.register(stage.container, count=count)) is None
    assert stage.containers.registered == []


@pytest.mark.parametrize(
    "claims",
    [
        {"workload": "x" * 257},
        {"namespace": "x" * 257},
        {"overlay": "x" * 257},
        {"labels": {"x" * 257: "x"}},
        {"labels": {"x": "x" * 257}},
        {"labels": {str(number): "x" for number in range(65)}},
    ],
    ids=["workload", "namespace", "overlay", "label name", "label value", "labels"],
)
def test_what_is_too_long_is_refused(stage: Stage, claims: dict[str, Any]) -> None:
    answer = stage.run(lambda caller: caller.register(stage.container, **claims))
    assert_refused(stage, answer, "too long")


@pytest.mark.parametrize("raw", [b"\xc1", b"x" * 60_000], ids=["no msgpack", "long"])
def test_rubbish_ends_the_conversation(stage: Stage, raw: bytes) -> None:
    async def converse(caller: Caller) -> Any:
        caller.channel.sock.send(raw)
        with pytest.raises(EOFError):
            await caller.receive()

    stage.run(converse)


def test_preparing_twice_ends_the_conversation(stage: Stage) -> None:
    async def converse(caller: Caller) -> Any:
        for _ in range(2):
            caller.channel.send(messages.PrepareNamespace("blue", None))
        assert isinstance(await caller.receive(), messages.Namespace)
        with pytest.raises(EOFError):
            await caller.receive()

    stage.run(converse)
    assert stage.containers.discarded == ["prepared-1"]


def test_a_silent_caller_is_hung_up_on(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_server, "CONVERSATION_LIMIT_S", 0.05)

    async def converse(caller: Caller) -> Any:
        with pytest.raises(EOFError):
            await caller.receive()

    stage.run(converse)


def test_anybody_may_connect(stage: Stage) -> None:
    async def converse(_: Caller) -> int:
        return stage.path.stat().st_mode & 0o777

    assert stage.run(converse) == 0o666


@pytest.mark.parametrize(
    ("uid", "workload", "labels", "program"),
    [
        (0, "web", {"app": "web"}, LIMITED_PROGRAM),
        (0, "db", {"app": "db"}, PROGRAM),
        # What is not said may be what the workload has already.
        (0, None, {"app": "db"}, LIMITED_PROGRAM),
        (0, "db", {}, LIMITED_PROGRAM),
        (MEMBER, "db", {"app": "db"}, LIMITED_PROGRAM),
    ],
)
def test_a_workload_that_may_be_limited_gets_the_filter_that_traps_more(
    stage: Stage, uid: int, workload: str | None, labels: dict[str, str], program: bytes
) -> None:
    stage.containers.limited = frozenset({"web"})
    stage.uid = uid

    async def describe(caller: Caller) -> None:
        caller.channel.send(messages.Describe(workload, "default", labels))
        assert await caller.receive() == messages.Offer(messages.PROTOCOL, program)
        answer = await caller.register(stage.container, workload="web", namespace="shop")
        assert isinstance(answer, messages.Ack)

    stage.run(describe)


def test_who_does_not_describe_itself_where_that_matters_is_hung_up_on(stage: Stage) -> None:
    stage.containers.limited = frozenset({"web"})

    async def register(caller: Caller) -> None:
        assert await caller.register(stage.container) is None

    stage.run(register)


def test_a_caller_that_comes_when_no_fd_is_left_is_heard_later(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Accepting fails until an fd is free; meanwhile slimd does not spin."""
    monkeypatch.setattr(conversations, "ACCEPT_PAUSE_S", 0.05)

    async def main() -> None:
        server = RunServer(str(stage.path), PROGRAMS, HOST, stage.config, stage.containers)
        caller = Caller(stage.path)
        before = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]))
        try:
            await asyncio.sleep(0.12)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
        async with asyncio.timeout(5):
            assert await caller.receive() == messages.Offer(messages.PROTOCOL, PROGRAM)
        caller.channel.close()
        await server.wait()
        server.close()

    asyncio.run(main())
    said = [record.message for record in caplog.records if "not heard" in record.message]
    assert 1 <= len(said) <= 3
