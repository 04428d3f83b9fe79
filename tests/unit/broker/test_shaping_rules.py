"""Which limits a flow gets by the rules of [shaping]."""

from __future__ import annotations

import ipaddress

import pytest

from slim.broker.decisions import PLAIN_PEER, Direction, FlowRequest, Identity
from slim.broker.endpoints import parse_address
from slim.broker.shaping import Shaping
from slim.broker.shaping_rules import ContainerLimit, Selector, ShapingRule, ShapingRules

WEB = Identity("web-1", "shop", {"app": "web", "tier": "front"})
DB = Identity("db-1", "data", {"app": "db"})
EGRESS = FlowRequest(
    direction=Direction.EGRESS,
    source=WEB,
    source_address=parse_address("10.77.1.2"),
    destination=None,
    destination_address=parse_address("10.77.2.2"),
    port=5432,
)
INGRESS = FlowRequest(
    direction=Direction.INGRESS,
    source=WEB,
    source_address=parse_address("10.77.1.2"),
    destination=DB,
    destination_address=parse_address("10.77.2.2"),
    port=5432,
)
SLOW = Shaping(send=1_000)


def rule(**selectors: object) -> ShapingRule:
    networks = selectors.pop("networks", ())
    ports = selectors.pop("ports", ())
    return ShapingRule("r", Selector(**selectors), SLOW, networks, ports)  # type: ignore[arg-type]


def network(text: str) -> tuple[ipaddress.IPv4Network]:
    return (ipaddress.IPv4Network(text),)


@pytest.mark.parametrize(
    ("written", "egress", "ingress"),
    [
        (rule(), True, True),
        (rule(workloads=frozenset({"web-1", "x"})), True, False),
        (rule(namespaces=frozenset({"data"})), False, True),
        (rule(labels=frozenset({("app", "web")})), True, False),
        (rule(labels=frozenset({("app", "web"), ("tier", "back")})), False, False),
        (rule(networks=network("10.77.2.0/24")), True, False),
        (rule(networks=network("10.77.1.0/24")), False, True),
        (rule(ports=((5432, 5432),)), True, True),
        (rule(ports=((1, 5431), (5433, 65535))), False, False),
    ],
)
def test_a_rule_selects_by_the_workload_of_this_host(
    written: ShapingRule, egress: bool, ingress: bool
) -> None:
    rules = ShapingRules((written,))
    assert (rules.shape(EGRESS) == SLOW, rules.shape(INGRESS) == SLOW) == (egress, ingress)


def test_a_plain_peer_is_limited_by_its_address() -> None:
    request = FlowRequest(
        direction=Direction.INGRESS,
        source=PLAIN_PEER,
        source_address=parse_address("10.77.9.9"),
        destination=DB,
        destination_address=parse_address("10.77.2.2"),
        port=80,
    )
    assert ShapingRules((rule(networks=network("10.77.9.0/24")),)).shape(request) == SLOW


def test_all_rules_that_match_count() -> None:
    rules = ShapingRules(
        (
            ShapingRule("a", Selector(), Shaping(send=5_000, quota=7)),
            ShapingRule("b", Selector(), Shaping(send=2_000, idle_s=3)),
            ShapingRule("c", Selector(workloads=frozenset({"other"})), Shaping(send=1_000)),
        )
    )
    assert rules.shape(EGRESS) == Shaping(send=2_000, quota=7, idle_s=3)


def test_without_rules_nothing_is_limited() -> None:
    assert ShapingRules().shape(EGRESS) is None
    assert not ShapingRules().may_shape(WEB)


def test_a_workload_may_be_limited_if_a_rule_selects_it() -> None:
    rules = ShapingRules((rule(workloads=frozenset({"web-1"}), ports=((1, 1),)),))
    assert rules.may_shape(WEB)
    assert not rules.may_shape(DB)


def test_the_lowest_rate_of_a_container_holds() -> None:
    rules = ShapingRules(
        (),
        (
            ContainerLimit("a", Selector(), 9_000),
            ContainerLimit("b", Selector(labels=frozenset({("app", "web")})), 4_000),
        ),
    )
    assert rules.container_rate(WEB) == 4_000
    assert rules.container_rate(DB) == 9_000
    assert ShapingRules().container_rate(DB) is None
