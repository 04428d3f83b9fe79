"""From a LookUp to a flow: policy, discovery, the peer's answer, the path; with fakes."""

from __future__ import annotations

import asyncio
import ipaddress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import msgspec
import pytest

from slim.broker.decisions import PLAIN_PEER, Direction, Identity, Verdict
from slim.broker.discovery import Located
from slim.broker.endpoints import Address, Endpoint, packed16, parse_address
from slim.broker.errors import ControlError
from slim.broker.inbound import Inbound
from slim.broker.local import messages
from slim.broker.peers import messages as peer_messages
from slim.broker.resolver import Resolver
from support.brokering import (
    FakePlugins,
    FakeTraps,
    add_workload,
    listening,
    make_sources,
    registry,
    state,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from slim.broker.discovery import DiscoveryBackend
    from slim.broker.paths import HostPaths
    from slim.broker.peers.channel import PeerLinks
    from slim.broker.registry import Registry

ERRNO = 113
CLIENT, COOKIE = "10.1.0.1", 77
REMOTE = parse_address("10.1.0.2")
CONTROL = Endpoint.parse("192.0.2.2:7946")
AT_HOST = Endpoint.parse("192.0.2.2:20001")
FAST = peer_messages.ResolvedFast(
    token=0,
    host_address=packed16(AT_HOST.address),
    host_port=AT_HOST.port,
    flow=9,
    lifetime_ms=1234,
    isolated=False,
    rule="rules:there",
)


@dataclass
class FakePaths:
    bad: set[Endpoint] = field(default_factory=set)

    async def is_good(self, endpoint: Endpoint) -> bool:
        return endpoint not in self.bad


@dataclass
class FakeLinks:
    answer: Any = None
    asked: list[tuple[str | None, Endpoint, peer_messages.Resolve]] = field(default_factory=list)

    async def ask(self, host: str | None, endpoint: Endpoint, make: Any) -> tuple[str, Any]:
        self.asked.append((host, endpoint, make(1)))
        if isinstance(self.answer, Exception):
            raise self.answer
        return "b", self.answer


@dataclass
class FakeDiscovery:
    located: Located | None
    name: str = "fake"
    asked: list[Address] = field(default_factory=list)

    async def locate(self, workload: int, destination: Address) -> Located | None:
        self.asked.append(destination)
        return self.located


class Stage:
    """A resolver among fakes, and one client workload."""

    def __init__(self, workloads: Registry, plugins: FakePlugins) -> None:
        self.workloads, self.plugins = workloads, plugins
        self.links, self.paths = FakeLinks(), FakePaths()
        self.discovery = FakeDiscovery(Located("b", CONTROL, 60))
        traps = FakeTraps()
        self.sources = make_sources()
        self.changes: list[str] = []
        inbound = Inbound(workloads, self.sources, traps, lifetime_s=300)
        inbound.on_identity_changed = lambda: self.changes.append("identity")
        self.resolver = Resolver(
            workloads,
            inbound,
            cast("HostPaths", self.paths),
            cast("PeerLinks", self.links),
            host="a",
            deny_errno=ERRNO,
        )
        self.resolver.backends = [cast("DiscoveryBackend", self.discovery)]
        self.client(isolated_egress=False)

    def client(self, *, isolated_egress: bool) -> None:
        known = self.workloads.workloads.get(COOKIE)
        if known is not None:
            self.workloads.remove(known)
        described = state(COOKIE, CLIENT, isolated_egress=isolated_egress)
        workload = add_workload(self.workloads, described)
        # What the namespace's routing table would say.
        for each in ("10.1.0.2", "10.1.0.3"):
            workload.sources[parse_address(each)] = parse_address(CLIENT)

    def look_up(
        self,
        to: Address = REMOTE,
        *,
        workload: int = COOKIE,
        source: str | None = None,
        retry: bool = False,
    ) -> Any:
        packed = packed16(parse_address(source)) if source else None
        asked = messages.LookUp(5, workload, packed, packed16(to), 80, 1, retry)
        found = asyncio.run(self.resolver.look_up(asked))
        assert found.token == 5
        return found


@pytest.fixture
def stage() -> Iterator[Stage]:
    plugins = FakePlugins()
    workloads = registry(plugins, ipaddress.ip_network("10.1.0.0/16"))
    yield Stage(workloads, plugins)
    for workload in workloads:
        workloads.remove(workload)


def assert_overlay(found: Any, reason: str) -> None:
    assert isinstance(found, messages.FlowOverlay), found
    assert found.reason == reason


def assert_denied(found: Any, rule: str) -> None:
    assert isinstance(found, messages.FlowDenied), found
    assert (found.errno, rule in found.rule) == (ERRNO, True)


# --- before anybody is asked ------------------------------------------------------------------


def test_an_unknown_workload_is_denied(stage: Stage) -> None:
    assert_denied(stage.look_up(workload=9), "unknown workload")


def test_an_address_that_is_not_the_workloads_own_is_no_source(stage: Stage) -> None:
    assert_overlay(stage.look_up(source="10.1.0.77"), "no-source")
    assert stage.plugins.asked == []


def test_no_route_means_no_source(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    workload = stage.workloads.workloads[COOKIE]
    monkeypatch.setattr(type(workload), "source_for", lambda *_: None)
    assert_overlay(stage.look_up(), "no-source")


def test_denied_egress_asks_nobody(stage: Stage) -> None:
    stage.plugins.policy = lambda _: Verdict(allow=False, rule="rules:no")
    assert_denied(stage.look_up(), "rules:no")
    assert stage.discovery.asked == []
    assert stage.links.asked == []
    assert stage.resolver.counters["denied"] == 1


def test_egress_policy_is_asked_about_an_unknown_destination(stage: Stage) -> None:
    stage.links.answer = FAST
    stage.look_up(source=CLIENT)
    (asked,) = stage.plugins.asked
    assert asked.direction is Direction.EGRESS
    assert asked.source.workload == f"workload-{COOKIE}"
    assert asked.source_address == parse_address(CLIENT)
    assert asked.destination is None
    assert (asked.destination_address, asked.port) == (REMOTE, 80)


# --- a destination on this host ---------------------------------------------------------------


def test_a_local_destination_is_answered_without_discovery(stage: Stage) -> None:
    server = add_workload(stage.workloads, state(78, "10.1.0.3"))
    listening(server, 80, "192.0.2.1:20000")
    found = stage.look_up(parse_address("10.1.0.3"))
    assert isinstance(found, messages.FlowFast)
    assert found.peer == "a"
    assert (found.host_address, found.host_port) == (packed16(parse_address("192.0.2.1")), 20000)
    assert stage.discovery.asked == []
    egress, ingress = stage.plugins.asked
    assert egress.destination == server.identity
    assert ingress.direction is Direction.INGRESS


# --- discovery --------------------------------------------------------------------------------


def test_without_an_owner_it_is_the_overlay(stage: Stage) -> None:
    stage.discovery.located = None
    assert_overlay(stage.look_up(), "no-discovery")


def test_without_an_owner_an_isolated_source_is_denied(stage: Stage) -> None:
    stage.client(isolated_egress=True)
    stage.discovery.located = None
    assert_denied(stage.look_up(), "no-discovery")


def test_what_nobody_brokers_is_the_overlay_if_policy_lets_plain_peers(stage: Stage) -> None:
    stage.discovery.located = Located(None, None, 60)
    assert_overlay(stage.look_up(), "not-brokered")
    assert stage.plugins.asked[-1].destination == PLAIN_PEER
    stage.plugins.policy = lambda asked: Verdict(asked.destination is None, "rules:no plain")
    assert_denied(stage.look_up(), "rules:no plain")


def test_without_a_control_channel_remote_hosts_are_the_overlay(stage: Stage) -> None:
    stage.resolver._links = None
    assert_overlay(stage.look_up(), "no-control-channel")


def test_the_first_backend_that_knows_is_believed(stage: Stage) -> None:
    silent, later = FakeDiscovery(None), FakeDiscovery(Located("x", CONTROL, 60))
    backends = [silent, stage.discovery, later]
    stage.resolver.backends = [cast("DiscoveryBackend", each) for each in backends]
    stage.links.answer = FAST
    stage.look_up()
    assert stage.links.asked[0][:2] == ("b", CONTROL)
    assert silent.asked == [REMOTE]
    assert later.asked == []


def test_a_find_is_kept_for_its_lifetime_and_asked_anew_on_retry(stage: Stage) -> None:
    stage.links.answer = FAST
    for _ in range(3):
        stage.look_up()
    assert len(stage.discovery.asked) == 1
    stage.look_up(retry=True)
    assert len(stage.discovery.asked) == 2
    stage.resolver.forget(REMOTE)
    stage.look_up()
    assert len(stage.discovery.asked) == 3
    stage.discovery.located = Located("b", CONTROL, 0)
    stage.resolver.forget(REMOTE)
    stage.look_up()
    stage.look_up()
    assert len(stage.discovery.asked) == 5


# --- the peer's answer ------------------------------------------------------------------------


def test_the_question_carries_the_source_and_its_identity(stage: Stage) -> None:
    stage.links.answer = FAST
    stage.look_up()
    _, _, asked = stage.links.asked[0]
    assert asked.workload == f"workload-{COOKIE}"
    assert asked.labels == {"app": f"app-{COOKIE}"}
    assert asked.source == packed16(parse_address(CLIENT))
    assert (asked.destination, asked.port) == (packed16(REMOTE), 80)


@pytest.mark.parametrize(
    "error", [ControlError("refused"), OSError(111, "refused"), TimeoutError()], ids=repr
)
def test_an_unreachable_peer_is_the_overlay_unless_isolated(stage: Stage, error: Exception) -> None:
    stage.links.answer = error
    assert_overlay(stage.look_up(), "peer-unreachable")
    stage.client(isolated_egress=True)
    assert_denied(stage.look_up(), "peer-unreachable")
    assert stage.resolver.counters["peer_unreachable"] == 2


def test_a_good_path_is_fast(stage: Stage) -> None:
    stage.links.answer = FAST
    assert stage.look_up() == messages.FlowFast(
        token=5,
        source=packed16(parse_address(CLIENT)),
        host_address=FAST.host_address,
        host_port=FAST.host_port,
        flow=9,
        peer="b",
        lifetime_ms=1234,
        fallback_lawful=True,
        rule="rules:there",
    )


# --- whose the destination is -----------------------------------------------------------------

SERVER = Identity("server", "shop", {"app": "server"})
PERHAPS = Verdict(allow=True, rule="test:perhaps", provisional=True)
OVERLAY = peer_messages.ResolvedOverlay(0, "no-listener", 4321, isolated=False)


def of(answer: Any, identity: Identity = SERVER) -> Any:
    """The answer of a slimd that says whose the destination is."""
    return msgspec.structs.replace(
        answer,
        workload=identity.workload,
        namespace=identity.namespace,
        labels=dict(identity.labels),
    )


@pytest.mark.parametrize("answer", [FAST, OVERLAY], ids=["fast", "overlay"])
def test_egress_is_decided_again_with_the_destinations_identity(stage: Stage, answer: Any) -> None:
    stage.plugins.policy = lambda asked: Verdict(asked.destination is None, "test:no server")
    stage.links.answer = of(answer)
    assert_denied(stage.look_up(), "test:no server")
    assert [asked.destination for asked in stage.plugins.asked] == [None, SERVER]


@pytest.mark.parametrize("answer", [FAST, OVERLAY], ids=["fast", "overlay"])
def test_a_verdict_that_needs_the_destination_denies_where_nobody_says_whose_it_is(
    stage: Stage, answer: Any
) -> None:
    stage.links.answer = answer
    assert not isinstance(stage.look_up(), messages.FlowDenied)
    stage.plugins.policy = lambda _: PERHAPS
    assert_denied(stage.look_up(), "b does not say whose the destination is")


def test_the_destinations_identity_is_kept_and_a_change_of_it_told(stage: Stage) -> None:
    stage.links.answer = of(FAST)
    for _ in range(2):
        stage.look_up()
    assert stage.sources.get("b", packed16(REMOTE)) == SERVER
    assert stage.changes == []
    other = Identity("server", "shop", {"app": "other"})
    stage.links.answer = of(FAST, other)
    stage.look_up()
    assert stage.sources.get("b", packed16(REMOTE)) == other
    assert stage.changes == ["identity"]


@pytest.mark.parametrize(
    ("egress", "ingress", "shown"),
    [
        (Verdict(True, "a:e"), "a:i", "a:i"),
        (Verdict(True, "a:e"), "", "a:e"),
        (Verdict(True, "a:e", audit=True), "a:i", "would deny: a:e"),
        (Verdict(True, "a:e", audit=True), "would deny: a:i", "would deny: a:i"),
    ],
)
def test_a_flow_is_shown_by_what_would_deny_it(
    stage: Stage, egress: Verdict, ingress: str, shown: str
) -> None:
    stage.plugins.policy = lambda _: egress
    stage.links.answer = of(msgspec.structs.replace(FAST, rule=ingress))
    found = stage.look_up()
    assert isinstance(found, messages.FlowFast)
    assert found.rule == shown
    assert stage.resolver.counters["would_deny"] == int(egress.audit)
    assert stage.workloads.audited == ({"a:e": 1} if egress.audit else {})


def isolated_answer(answer: Any) -> Any:
    return type(answer)(
        *[
            True if name == "isolated" else getattr(answer, name)
            for name in answer.__struct_fields__
        ]
    )


@pytest.mark.parametrize("end", ["source", "destination"])
def test_between_isolated_ends_falling_back_is_unlawful(stage: Stage, end: str) -> None:
    stage.client(isolated_egress=end == "source")
    stage.links.answer = isolated_answer(FAST) if end == "destination" else FAST
    found = stage.look_up()
    assert isinstance(found, messages.FlowFast)
    assert not found.fallback_lawful
    stage.paths.bad.add(AT_HOST)
    assert_denied(stage.look_up(), "host path to 192.0.2.2:20001 failed")


def test_a_failed_path_is_the_overlay(stage: Stage) -> None:
    stage.links.answer = FAST
    stage.paths.bad.add(AT_HOST)
    assert_overlay(stage.look_up(), "host-path-failed")


def test_the_destinations_refusal_is_final(stage: Stage) -> None:
    stage.links.answer = peer_messages.ResolvedDenied(0, 1000, "rules:not you")
    assert_denied(stage.look_up(), "rules:not you")


def test_no_listener_is_the_overlay_unless_the_destination_is_isolated(stage: Stage) -> None:
    answer = peer_messages.ResolvedOverlay(0, "no-listener", 4321, isolated=False)
    stage.links.answer = answer
    found = stage.look_up()
    assert_overlay(found, "no-listener")
    assert found.lifetime_ms == 4321
    stage.links.answer = isolated_answer(answer)
    assert_denied(stage.look_up(), "isolated")


def test_an_owner_that_knows_nothing_is_looked_for_anew(stage: Stage) -> None:
    stage.links.answer = peer_messages.ResolvedUnknown(0)
    assert_overlay(stage.look_up(), "owner-unknown")
    stage.look_up()
    assert len(stage.discovery.asked) == 2
