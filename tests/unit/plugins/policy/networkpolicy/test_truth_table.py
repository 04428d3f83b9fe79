"""Every verdict of the truth table, from documents to decisions (tests/data/policy)."""

from __future__ import annotations

import pytest

from slim.broker.plugin_api import Direction, parse_address
from support.policy_questions import End, allows, engine_of, flow_between
from support.truth_table import Case, as_document, cases


def test_the_table_is_all_there() -> None:
    assert len(cases()) == 230
    assert sum(len(step.rows) for case in cases() for step in case.steps) == 109_956


@pytest.mark.parametrize("case", cases(), ids=lambda case: f"case-{case.number}")
def test_every_verdict_of_the_case_is_as_expected(case: Case) -> None:
    wrong = []
    for step in case.steps:
        engine = engine_of(as_document(step))
        ends = {
            name: (
                End(pod.namespace, pod.labels, ports=pod.ports).member(engine),
                parse_address(pod.address),
            )
            for name, pod in step.pods.items()
        }
        for row in step.rows:
            for direction, expected in (
                (Direction.INGRESS, row.ingress),
                (Direction.EGRESS, row.egress),
            ):
                flow = flow_between(
                    direction,
                    ends[row.source],
                    ends[row.destination],
                    row.port,
                    row.protocol,
                )
                decision = engine.decide(direction, flow)
                if allows(decision) != expected:
                    wrong.append((row, direction, decision))
    assert wrong == []
