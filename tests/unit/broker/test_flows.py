"""The table of outbound flows."""

from __future__ import annotations

from slim.broker.endpoints import Endpoint, parse_address
from slim.broker.flows import FlowKey, FlowTable, OverlayFlow


def key(destination: str = "10.1.0.2:80", workload: int = 1) -> FlowKey:
    return FlowKey(workload, None, Endpoint.parse(destination))


def flow(expires_s: float = 10.0, reason: str = "no-listener") -> OverlayFlow:
    return OverlayFlow(reason, "", expires_s)


def test_a_flow_is_known_until_its_lifetime_ends() -> None:
    table = FlowTable()
    assert table.get(key(), 0.0) is None
    table.put(key(), flow(10.0))
    assert table.get(key(), 9.9) == flow(10.0)
    assert table.get(key(), 10.0) is None
    assert len(table) == 0


def test_a_key_is_workload_source_and_destination() -> None:
    table = FlowTable()
    table.put(key(), flow())
    assert table.get(key(workload=2), 0.0) is None
    assert table.get(key("10.1.0.2:81"), 0.0) is None
    bound = FlowKey(1, parse_address("10.1.0.1"), Endpoint.parse("10.1.0.2:80"))
    assert table.get(bound, 0.0) is None


def test_the_last_answer_counts() -> None:
    table = FlowTable()
    table.put(key(), flow())
    table.put(key(), flow(reason="later"))
    assert table.get(key(), 0.0) == flow(reason="later")
    assert len(table) == 1


def test_the_oldest_answer_goes_first() -> None:
    table = FlowTable(limit=2)
    first, second, third = (key(f"10.1.0.{number}:80") for number in (1, 2, 3))
    table.put(first, flow())
    table.put(second, flow())
    table.put(first, flow())
    table.put(third, flow())
    assert len(table) == 2
    assert table.get(second, 0.0) is None
    assert table.get(first, 0.0)
    assert table.get(third, 0.0)


def filled() -> FlowTable:
    table = FlowTable()
    for destination in ("10.1.0.2:80", "10.1.0.2:81", "10.1.0.3:80"):
        for workload in (1, 2):
            table.put(key(destination, workload), flow())
    return table


def known(table: FlowTable) -> set[tuple[int, str]]:
    every = [
        key(destination, workload)
        for destination in ("10.1.0.2:80", "10.1.0.2:81", "10.1.0.3:80")
        for workload in (1, 2)
    ]
    return {(key.workload, str(key.destination)) for key in every if table.get(key, 0.0)}


def test_drop_forgets_one_flow_and_not_finding_it_is_no_error() -> None:
    table = filled()
    table.drop(key())
    table.drop(key())
    assert (1, "10.1.0.2:80") not in known(table)
    assert len(table) == 5


def test_drop_destination_forgets_one_port_for_every_workload() -> None:
    table = filled()
    table.drop_destination(parse_address("10.1.0.2"), 80)
    assert {to for _, to in known(table)} == {"10.1.0.2:81", "10.1.0.3:80"}


def test_drop_destination_with_port_0_forgets_every_port() -> None:
    table = filled()
    table.drop_destination(parse_address("10.1.0.2"), 0)
    assert known(table) == {(1, "10.1.0.3:80"), (2, "10.1.0.3:80")}


def test_drop_workload_and_drop_all() -> None:
    table = filled()
    table.drop_workload(1)
    assert {workload for workload, _ in known(table)} == {2}
    assert len(table) == 3
    table.drop_all()
    assert len(table) == 0
