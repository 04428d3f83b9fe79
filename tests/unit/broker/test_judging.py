"""What is asked again of policy, about whom, and what a missing identity means."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Literal

import pytest

from slim.broker.connections import ConnectionRecord, pack
from slim.broker.decisions import PLAIN_PEER, Direction, FlowRequest, Identity, Verdict
from slim.broker.endpoints import Endpoint, packed16, parse_address
from slim.broker.judging import Ingress, Judge
from support.brokering import FakePlugins, add_workload, make_sources, registry, state

if TYPE_CHECKING:
    from collections.abc import Iterator

    from slim.broker.registry import Registry
    from slim.broker.sources import Sources

OWN, REMOTE = Endpoint.parse("10.1.0.1:80"), Endpoint.parse("10.1.0.9:40000")
SOURCE = packed16(OWN.address)
NEIGHBOUR = "10.1.0.2"
CLIENT = Identity("client", "shop", {"app": "client"})
NO = Verdict(allow=False, rule="test:no")
YES = Verdict(allow=True, rule="test:yes")


@pytest.fixture
def plugins() -> FakePlugins:
    return FakePlugins(policy=lambda _: YES)


@pytest.fixture
def workloads(plugins: FakePlugins) -> Iterator[Registry]:
    made = registry(plugins, ipaddress.ip_network("10.1.0.0/16"))
    add_workload(made, state(77, str(OWN.address)))
    add_workload(made, state(78, NEIGHBOUR))
    yield made
    for workload in made:
        made.remove(workload)


@pytest.fixture
def sources() -> Iterator[Sources]:
    made = make_sources()
    made.remember("b", packed16(REMOTE.address), CLIENT)
    yield made
    made.close()


@pytest.fixture
def judge(workloads: Registry, sources: Sources) -> Judge:
    return Judge(workloads, sources)


def isolate(workloads: Registry) -> None:
    workload = workloads.workloads[77]
    workload.state = state(77, str(OWN.address), isolated_ingress=True)


def record(
    direction: Literal["in", "out"] = "in",
    path: Literal["fast", "fallback", "denied"] = "fast",
    *,
    peer: Endpoint = REMOTE,
    peer_host: str = "b",
    reason: str = "",
    workload: int = 77,
) -> ConnectionRecord:
    return ConnectionRecord(
        cookie=1,
        workload=workload,
        direction=direction,
        local=pack(OWN),
        peer=pack(peer),
        host_peer=pack(None),
        peer_host=peer_host,
        path=path,
        reason=reason,
        rule="",
        pid=1,
        created=0.0,
    )


def test_ingress_is_asked_with_both_identities_and_overlay_addresses(
    judge: Judge, plugins: FakePlugins, workloads: Registry
) -> None:
    assert judge.connection(record(), SOURCE) == YES
    assert plugins.asked == [
        FlowRequest(
            direction=Direction.INGRESS,
            source=CLIENT,
            source_address=REMOTE.address,
            destination=workloads.workloads[77].identity,
            destination_address=OWN.address,
            port=OWN.port,
        )
    ]


def test_a_flow_and_its_connections_are_one_question(judge: Judge, plugins: FakePlugins) -> None:
    flow = Ingress(77, packed16(OWN.address), OWN.port, "b", packed16(REMOTE.address))
    judge.ingress(flow)
    judge.connection(record(), SOURCE)
    judge.connection(record(peer=Endpoint(REMOTE.address, 40001)), SOURCE)
    assert len(plugins.asked) == 1


def test_the_same_address_of_another_host_is_not_that_source(
    judge: Judge, plugins: FakePlugins, workloads: Registry
) -> None:
    isolate(workloads)
    assert not judge.connection(record(peer_host="c"), SOURCE).allow
    assert plugins.asked == []


def test_an_unknown_source_stays_where_nothing_can_be_refused(judge: Judge) -> None:
    assert judge.connection(record(peer_host="c"), SOURCE).allow


def test_egress_is_asked_with_what_the_hosts_said_of_the_destination(
    judge: Judge, plugins: FakePlugins, workloads: Registry
) -> None:
    """Of a neighbour everything is known, of another host's workload what its slimd said."""
    judge.connection(record("out"), SOURCE)
    judge.connection(record("out", peer_host="c"), SOURCE)
    neighbour = Endpoint(parse_address(NEIGHBOUR), 80)
    judge.connection(record("out", peer=neighbour), SOURCE)
    assert [asked.direction for asked in plugins.asked] == [Direction.EGRESS] * 3
    assert [asked.destination for asked in plugins.asked] == [
        CLIENT,
        None,
        workloads.workloads[78].identity,
    ]


def test_a_verdict_that_needs_an_unknown_destination_ends_the_connection(
    judge: Judge, plugins: FakePlugins
) -> None:
    """Unless it is on the overlay, where its slimd is asked again."""
    plugins.policy = lambda _: Verdict(allow=True, rule="test:perhaps", provisional=True)
    assert not judge.connection(record("out", peer_host="c"), SOURCE).allow
    plain = record("out", "fallback", peer_host="", reason="no-listener")
    assert judge.connection(plain, SOURCE).allow


def test_a_destination_that_nobody_brokers_is_asked_about_as_one(
    judge: Judge, plugins: FakePlugins
) -> None:
    plugins.policy = lambda asked: NO if asked.destination == PLAIN_PEER else YES
    assert judge.connection(record("out", "fallback", reason="no-listener"), SOURCE) == YES
    assert judge.connection(record("out", "fallback", reason="not-brokered"), SOURCE) == NO


@pytest.mark.parametrize(
    ("peer", "stays"), [(REMOTE, False), (OWN, True), (Endpoint.parse("127.0.0.1:9"), True)]
)
def test_plain_peers_of_an_isolated_workload_go_but_for_itself(
    judge: Judge, workloads: Registry, peer: Endpoint, stays: bool
) -> None:
    plain = record("in", "fallback", peer=peer, peer_host="", reason="plain-peer")
    assert judge.connection(plain, SOURCE).allow
    isolate(workloads)
    assert judge.connection(plain, SOURCE).allow is stays


def test_what_was_refused_and_whose_workload_is_gone_is_left_alone(
    judge: Judge, plugins: FakePlugins
) -> None:
    plugins.policy = lambda _: NO
    assert judge.connection(record("out", "denied"), SOURCE).allow
    assert judge.connection(record(workload=99), SOURCE).allow
    # A flow to it admits nobody, though.
    assert not judge.ingress(Ingress(99, bytes(16), 80, "b", bytes(16))).allow
