"""The compiled engine decides what the specification says, in any world that hypothesis makes."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, event, given, settings

from slim.broker.plugin_api import Direction
from slim.plugins.policy.networkpolicy.compiler import compile_resources
from slim.plugins.policy.networkpolicy.engine import Outcome
from slim.plugins.policy.networkpolicy.model import Protocol
from slim.plugins.policy.networkpolicy.table import Flow
from support.policy_questions import End, allows, ask, engine_of
from support.policy_specification import Question, Someone, is_allowed
from support.policy_strategies import ADDRESSES, groups, questions, worlds

if TYPE_CHECKING:
    from slim.plugins.policy.networkpolicy.engine import Decision, Engine
    from slim.plugins.policy.networkpolicy.matching import Member
    from slim.plugins.policy.networkpolicy.model import Resource

# A loaded machine is slow at times, which is no failure. tox -e policy tries more.
calmly = settings(
    deadline=None,
    max_examples=int(os.environ.get("SLIM_POLICY_EXAMPLES", "60")),
    suppress_health_check=[HealthCheck.too_slow],
)


def member(engine: Engine, someone: Someone) -> Member | None:
    if someone.namespace is None:
        return None
    return engine.member(someone.namespace, frozenset(someone.labels.items()), someone.ports)


def flow_of(engine: Engine, question: Question) -> Flow:
    subject = member(engine, question.subject)
    assert subject is not None
    return Flow(
        subject,
        member(engine, question.peer),
        question.peer.address,
        question.protocol,
        question.port,
        member(engine, question.destination),
    )


@calmly
@given(worlds(), groups)
def test_the_engine_decides_what_the_specification_says(
    world: list[Resource], ends: list[Someone]
) -> None:
    """And who is not isolated is never refused; early verdicts hold whoever the destination is."""
    engine = compile_resources(world).enforced
    for question in questions(ends):
        flow = flow_of(engine, question)
        decision, expected = engine.decide(question.direction, flow), is_allowed(world, question)
        event(f"{question.direction} {outcome_of(decision)}")
        assert allows(decision) == expected
        assert expected or engine.isolates(question.direction, flow.subject)
        if question.direction is Direction.EGRESS:
            early = engine.decide_open(Direction.EGRESS, replace(flow, peer=None, destination=None))
            event(f"early {outcome_of(early)}")
            assert outcome_of(early) in ("open", outcome_of(decision)) or allows(early) == expected


@calmly
@given(worlds(), worlds(), groups)
def test_what_is_taken_over_from_the_engine_before_changes_no_verdict(
    before: list[Resource], world: list[Resource], ends: list[Someone]
) -> None:
    mixed = [*before[: len(before) // 2], *world]
    mixed = [*{(type(each), each.name): each for each in mixed}.values()]
    engine = compile_resources(mixed, compile_resources(before)).enforced
    for question in questions(ends):
        decision = engine.decide(question.direction, flow_of(engine, question))
        assert allows(decision) == is_allowed(mixed, question)


def outcome_of(decision: Decision | None) -> str:
    return "no opinion" if decision is None else decision.outcome.value


ALLOW_WEB = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: shop}
spec:
  policyTypes: [Ingress, Egress]
  ingress: [{from: [{podSelector: {matchLabels: {app: web}}}]}]
  egress: [{to: [{podSelector: {matchLabels: {app: web}}}], ports: [{port: 80}]}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: nothing, namespace: shop}
spec: {}
"""
DB, WEB = End("shop", {"app": "db"}, "10.0.0.1"), End("shop", {"app": "web"}, "10.0.0.2")


def test_a_verdict_names_the_rule_or_the_policies_that_isolate() -> None:
    engine = engine_of(ALLOW_WEB)
    allowed = ask(engine, Direction.INGRESS, WEB, DB)
    refused = ask(engine, Direction.INGRESS, DB, DB)
    assert allowed is not None
    assert refused is not None
    assert allowed.rule == "networkpolicy:shop/web ingress[0]"
    assert refused.rule == "networkpolicy:shop/nothing (+1) no ingress rule allows it"


def test_a_rule_text_has_80_characters_at_most_and_both_ends_of_the_name() -> None:
    name = "a" * 100 + "." + "b" * 100
    engine = engine_of(ALLOW_WEB.replace("name: web,", f"name: {name},"))
    allowed = ask(engine, Direction.INGRESS, WEB, DB)
    assert allowed is not None
    assert len(allowed.rule) <= 80
    assert "shop/aaa" in allowed.rule
    assert "bbb ingress[0]" in allowed.rule


@pytest.mark.parametrize(
    ("port", "outcome"), [(80, Outcome.OPEN), (81, Outcome.DENY)], ids=["open", "nobody"]
)
def test_before_the_destination_is_known_only_the_impossible_is_refused(
    port: int, outcome: Outcome
) -> None:
    engine = engine_of(ALLOW_WEB)
    subject = DB.member(engine)
    assert subject is not None
    flow = Flow(subject, None, ADDRESSES[0], Protocol.TCP, port, None)
    decision = engine.decide_open(Direction.EGRESS, flow)
    assert decision is not None
    assert decision.outcome is outcome


def cluster_policy(name: str, tier: str, priority: int, rules: str) -> str:
    return f"""
---
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {{name: {name}}}
spec:
  tier: {tier}
  priority: {priority}
  subject: {{namespaces: {{}}}}
  ingress: {rules}
"""


DENY = "[{action: Deny, from: [{namespaces: {}}]}]"
PASS = "[{action: Pass, from: [{namespaces: {}}]}]"
ACCEPT = "[{action: Accept, from: [{namespaces: {}}], name: all}]"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (cluster_policy("a", "Admin", 1, DENY), False),
        # The lower number comes first.
        (cluster_policy("a", "Admin", 2, DENY) + cluster_policy("b", "Admin", 1, ACCEPT), True),
        # Pass leaves the rest of its tier out.
        (cluster_policy("a", "Admin", 2, DENY) + cluster_policy("b", "Admin", 1, PASS), True),
        (cluster_policy("a", "Admin", 1, PASS) + cluster_policy("b", "Baseline", 1, DENY), False),
        # Admin goes before NetworkPolicies, these before Baseline.
        (cluster_policy("a", "Admin", 1, ACCEPT) + "\n---" + ALLOW_WEB, True),
        (cluster_policy("a", "Admin", 1, PASS) + "\n---" + ALLOW_WEB, False),
        (cluster_policy("a", "Baseline", 1, ACCEPT) + "\n---" + ALLOW_WEB, False),
        (cluster_policy("a", "Baseline", 1, DENY), False),
        (cluster_policy("a", "Baseline", 1, PASS), True),
    ],
)
def test_tiers(text: str, expected: bool) -> None:
    assert allows(ask(engine_of(text), Direction.INGRESS, DB, DB)) == expected


@pytest.mark.parametrize("action", ["Accept", "Deny", "Pass"])
@pytest.mark.parametrize("peer", ["{nodes: {}}", "{domainNames: [a.example]}", "{later: 1}"])
def test_peers_of_an_unknown_kind_fail_closed(action: str, peer: str) -> None:
    """Accept matches nothing; Deny and Pass deny everything, whatever their ports."""
    rules = (
        f"[{{action: {action}, from: [{peer}, {{namespaces: {{}}}}], "
        "protocols: [{tcp: {destinationPort: {number: 1}}}]}]"
    )
    engine = engine_of(
        cluster_policy("a", "Admin", 1, rules) + cluster_policy("b", "Admin", 2, ACCEPT)
    )
    for source in (DB, End(address="192.0.2.1")):
        decision = ask(engine, Direction.INGRESS, source, DB)
        expected = action == "Accept"
        assert allows(decision) == expected


def test_a_unit_that_did_not_change_is_not_compiled_again() -> None:
    first = compile_resources(worlds_of(ALLOW_WEB.replace("shop", "one") + "---" + ALLOW_WEB))
    again = compile_resources(first.resources, first)
    assert again.units.compiled == 0
    changed = ALLOW_WEB.replace("shop", "one") + "---" + ALLOW_WEB.replace("80", "81")
    assert compile_resources(worlds_of(changed), first).units.compiled == 1


def worlds_of(text: str) -> tuple[Resource, ...]:
    from slim.plugins.policy.networkpolicy.loading import read_text

    return read_text("p.yaml", text.encode()).resources
