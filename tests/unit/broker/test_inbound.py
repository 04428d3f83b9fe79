"""Answering Resolve: ingress policy, inbound flows, and who must hear of changes."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
from typing import TYPE_CHECKING

import pytest

from slim.broker import inbound as inbound_module
from slim.broker.decisions import Direction, Identity, Verdict
from slim.broker.endpoints import packed16, parse_address
from slim.broker.inbound import INBOUND_MARGIN_MS, Inbound
from slim.broker.peers import messages
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

    from slim.broker.registry import Registry, Workload
    from slim.broker.sources import Sources

SERVER, PORT = "10.1.0.1", 80
LIFETIME_S = 300


@pytest.fixture
def plugins() -> FakePlugins:
    return FakePlugins()


@pytest.fixture
def traps() -> FakeTraps:
    return FakeTraps()


@pytest.fixture
def workloads(plugins: FakePlugins) -> Iterator[Registry]:
    made = registry(plugins, ipaddress.ip_network("10.1.0.0/16"))
    yield made
    for workload in made:
        made.remove(workload)


@pytest.fixture
def server(workloads: Registry) -> Workload:
    return add_workload(workloads, state(77, SERVER, "fd00::1"))


@pytest.fixture
def sources() -> Iterator[Sources]:
    with contextlib.closing(make_sources()) as made:
        yield made


@pytest.fixture
def inbound(workloads: Registry, sources: Sources, traps: FakeTraps) -> Inbound:
    return Inbound(workloads, sources, traps, lifetime_s=LIFETIME_S)


def resolve(
    to: str = SERVER, port: int = PORT, source: str = "10.1.0.9", token: int = 5
) -> messages.Resolve:
    return messages.Resolve(
        token=token,
        workload="client",
        namespace="default",
        labels={"app": "web"},
        source=packed16(parse_address(source)),
        destination=packed16(parse_address(to)),
        port=port,
    )


def answer(inbound: Inbound, asked: messages.Resolve, peer: str = "b") -> messages.ResolveAnswer:
    return asyncio.run(inbound.answer(peer, asked))


def test_an_address_of_nobody_is_unknown(inbound: Inbound, plugins: FakePlugins) -> None:
    assert answer(inbound, resolve()) == messages.ResolvedUnknown(5)
    assert plugins.asked == []


def test_a_listener_is_answered_after_traps_knows_the_flow(
    inbound: Inbound, server: Workload, traps: FakeTraps
) -> None:
    listening(server, PORT, "192.0.2.1:20000")
    found = answer(inbound, resolve())
    assert isinstance(found, messages.ResolvedFast)
    (added,) = traps.requests
    assert added.flow == found.flow != 0
    assert (added.peer, added.workload, added.port) == ("b", 77, PORT)
    assert added.source == packed16(parse_address("10.1.0.9"))
    assert added.destination == packed16(parse_address(SERVER))
    assert added.source_workload == "default/client"
    assert added.lifetime_ms == LIFETIME_S * 1000 + INBOUND_MARGIN_MS
    assert found.lifetime_ms == LIFETIME_S * 1000
    assert (found.host_address, found.host_port) == (packed16(parse_address("192.0.2.1")), 20000)
    assert (found.token, found.isolated, found.rule) == (5, False, "default")


def test_policy_sees_both_ends(inbound: Inbound, server: Workload, plugins: FakePlugins) -> None:
    answer(inbound, resolve())
    (asked,) = plugins.asked
    assert asked.direction is Direction.INGRESS
    assert asked.source == Identity("client", "default", {"app": "web"})
    assert asked.source_address == parse_address("10.1.0.9")
    assert asked.destination == server.identity
    assert (asked.destination_address, asked.port) == (parse_address(SERVER), PORT)


def test_the_answer_says_whose_the_destination_is(inbound: Inbound, server: Workload) -> None:
    for _ in ("without a listener", "with one"):
        found = answer(inbound, resolve())
        assert isinstance(found, messages.ResolvedFast | messages.ResolvedOverlay)
        assert Identity(found.workload, found.namespace, found.labels) == server.identity
        listening(server, PORT, "192.0.2.1:20000")


def test_what_audit_lets_in_is_counted_and_said(
    inbound: Inbound, server: Workload, plugins: FakePlugins, workloads: Registry, traps: FakeTraps
) -> None:
    listening(server, PORT, "192.0.2.1:20000")
    plugins.policy = lambda _: Verdict(allow=True, rule="test:no", audit=True)
    found = answer(inbound, resolve())
    assert isinstance(found, messages.ResolvedFast)
    assert found.rule == traps.requests[0].rule == "would deny: test:no"
    assert inbound.counters["ingress_would_deny"] == 1
    assert workloads.counters()["would_deny test:no"] == 1


def test_a_denied_source_gets_no_flow(
    inbound: Inbound, server: Workload, plugins: FakePlugins, traps: FakeTraps
) -> None:
    listening(server, PORT, "192.0.2.1:20000")
    plugins.policy = lambda _: Verdict(allow=False, rule="rules:no")
    denied = answer(inbound, resolve())
    assert isinstance(denied, messages.ResolvedDenied)
    assert denied.rule == "rules:no"
    assert traps.requests == []
    assert inbound.take_askers(77, PORT) == {}


def test_without_a_listener_it_is_the_overlay_unless_isolated(
    inbound: Inbound, workloads: Registry, server: Workload
) -> None:
    add_workload(workloads, state(78, "10.1.0.2", isolated_ingress=True))
    for address, isolated in ((SERVER, False), ("10.1.0.2", True)):
        found = answer(inbound, resolve(address))
        assert isinstance(found, messages.ResolvedOverlay)
        assert (found.reason, found.isolated) == ("no-listener", isolated)


@pytest.mark.parametrize(
    ("own", "dual_stack", "to", "found"),
    [
        ("0.0.0.0", False, SERVER, True),
        (SERVER, False, SERVER, True),
        ("10.1.0.2", False, SERVER, False),
        ("0.0.0.0", False, "fd00::1", False),
        ("::", False, "fd00::1", True),
        ("::", False, SERVER, False),
        ("::", True, SERVER, True),
    ],
)
def test_which_listener_serves_an_address(
    inbound: Inbound, server: Workload, own: str, dual_stack: bool, to: str, found: bool
) -> None:
    listening(server, PORT, "192.0.2.1:20000", own, dual_stack=dual_stack)
    listening(server, PORT + 1, "192.0.2.1:20001", to)
    assert isinstance(answer(inbound, resolve(to)), messages.ResolvedFast) is found


def test_without_traps_it_is_the_overlay(
    inbound: Inbound, server: Workload, traps: FakeTraps
) -> None:
    listening(server, PORT, "192.0.2.1:20000")
    traps.is_away = True
    found = answer(inbound, resolve())
    assert isinstance(found, messages.ResolvedOverlay)
    assert found.reason == "traps-down"
    traps.is_away = False
    assert isinstance(answer(inbound, resolve()), messages.ResolvedFast)


def flow_of(found: messages.ResolveAnswer) -> int:
    assert isinstance(found, messages.ResolvedFast)
    return found.flow


def test_a_young_flow_serves_the_same_ends_again(
    inbound: Inbound, server: Workload, traps: FakeTraps
) -> None:
    listening(server, PORT, "192.0.2.1:20000")
    first = flow_of(answer(inbound, resolve()))
    assert flow_of(answer(inbound, resolve())) == first
    others = [
        flow_of(answer(inbound, resolve(source="10.1.0.10"))),
        flow_of(answer(inbound, resolve(), peer="c")),
    ]
    assert len({first, *others}) == 3
    assert len(traps.requests) == 3
    inbound.forget_workload(77)
    assert flow_of(answer(inbound, resolve())) != first


def test_an_old_flow_is_not_given_out_again(
    inbound: Inbound, server: Workload, monkeypatch: pytest.MonkeyPatch
) -> None:
    listening(server, PORT, "192.0.2.1:20000")
    first = flow_of(answer(inbound, resolve()))
    monkeypatch.setattr(inbound_module, "REUSE_S", 0.0)
    assert flow_of(answer(inbound, resolve())) != first


def test_who_asked_hears_of_it_once(inbound: Inbound, server: Workload) -> None:
    answer(inbound, resolve())
    answer(inbound, resolve("fd00::1"))
    answer(inbound, resolve(), peer="c")
    answer(inbound, resolve(port=81), peer="d")
    own, other = parse_address(SERVER), parse_address("fd00::1")
    assert inbound.take_askers(77, PORT) == {"b": {own, other}, "c": {own}}
    assert inbound.take_askers(77, PORT) == {}
    answer(inbound, resolve("fd00::1"), peer="d")
    assert inbound.take_all_askers(77) == {"d": {own, other}}
    assert inbound.take_all_askers(77) == {}


def test_askers_are_bounded(
    inbound: Inbound, server: Workload, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inbound_module, "MAX_ASKERS", 1)
    answer(inbound, resolve())
    answer(inbound, resolve(port=81))
    answer(inbound, resolve(), peer="c")
    assert set(inbound.take_askers(77, PORT)) == {"b", "c"}
    assert inbound.take_askers(77, 81) == {}
