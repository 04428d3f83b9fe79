"""The table [shaping] of the configuration, checked and turned into rules (shaping_rules.py)."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from slim.broker.config_file import quoted
from slim.broker.config_values import (
    OVERLAY_NAME,
    check_name,
    check_text,
    check_unique,
    read_network,
)
from slim.broker.endpoints import PortRange
from slim.broker.shaping import (
    MAX_PRIORITY,
    Shaping,
    parse_dscp,
    parse_duration,
    parse_rate,
    parse_size,
)
from slim.broker.shaping_rules import ContainerLimit, Selector, ShapingRule, ShapingRules

if TYPE_CHECKING:
    from collections.abc import Callable

    from slim.broker.config_file import ConfigFile, Place
    from slim.broker.config_shaping_tables import ShapingContainerTable, ShapingRuleTable

MAX_CONTAINER_RATE = 0xFFFF_FFFF
"""Bytes per second: the kernel's number has 32 bits (struct tc_ratespec, linux/pkt_sched.h)."""
Value = TypeVar("Value")


def read_shaping(file: ConfigFile) -> ShapingRules:
    """All rules; ConfigError names the rule, the key and the remedy."""
    rules = tuple(_read_rule(file, index) for index in range(len(file.tables.shaping.rule)))
    limits = tuple(
        _read_container(file, index) for index in range(len(file.tables.shaping.container))
    )
    for table, names in (
        ("rule", [rule.name for rule in rules]),
        ("container", [limit.name for limit in limits]),
    ):
        for index, name in enumerate(names):
            if name in names[:index]:
                place = file.at("shaping", table, index, "name")
                raise place.mistake(f"{name!r} is the name of an earlier one", "take another")
    return ShapingRules(rules, limits)


def _read_rule(file: ConfigFile, index: int) -> ShapingRule:
    table = file.tables.shaping.rule[index]

    def at(key: str) -> Place:
        return file.at("shaping", "rule", index, key)

    selector = _read_selector(table, at)
    if table.priority is not None and not 0 <= table.priority <= MAX_PRIORITY:
        raise at("priority").mistake(f"{table.priority} is not between 0 and {MAX_PRIORITY}")
    shaping = Shaping(
        send=_parse(at("send"), table.send, parse_rate),
        receive=_parse(at("receive"), table.receive, parse_rate),
        dscp=_parse(at("dscp"), table.dscp, parse_dscp),
        priority=table.priority,
        quota=_parse(at("quota"), table.quota, parse_size),
        lifetime_s=_parse(at("lifetime"), table.lifetime, parse_duration),
        idle_s=_parse(at("idle"), table.idle, parse_duration),
    )
    rule = ShapingRule(
        table.name,
        selector,
        shaping,
        networks=tuple(read_network(at("networks"), text, ()) for text in table.networks),
        ports=tuple(_read_ports(at("ports"), text) for text in table.ports),
    )
    if not shaping:
        raise file.at("shaping", "rule", index).mistake(
            f"{table.name!r} limits nothing",
            "write at least one of send, receive, dscp, priority, quota, lifetime and idle",
        )
    return rule


def _read_container(file: ConfigFile, index: int) -> ContainerLimit:
    table = file.tables.shaping.container[index]

    def at(key: str) -> Place:
        return file.at("shaping", "container", index, key)

    selector = _read_selector(table, at)
    send = _parse(at("send"), table.send, parse_rate)
    assert send is not None
    if send > MAX_CONTAINER_RATE:
        raise at("send").mistake(f"{quoted(table.send)} is more than 34gbit, the most HTB takes")
    return ContainerLimit(table.name, selector, send)


def _read_selector(
    table: ShapingRuleTable | ShapingContainerTable, at: Callable[[str], Place]
) -> Selector:
    check_name(at("name"), table.name, OVERLAY_NAME)
    for key, names in (("workloads", table.workloads), ("namespaces", table.namespaces)):
        for name in names:
            if not name:
                raise at(key).mistake("one of them is empty")
            check_text(at(key), name)
        check_unique(at(key), names)
    for label, value in table.labels.items():
        if not label:
            raise at("labels").mistake("one has no name")
        check_text(at("labels"), label)
        check_text(at("labels"), value)
    return Selector(
        frozenset(table.workloads),
        frozenset(table.namespaces),
        frozenset(table.labels.items()),
    )


def _parse(place: Place, text: str | None, parse: Callable[[str], Value]) -> Value | None:
    if text is None:
        return None
    try:
        return parse(text)
    except ValueError as error:
        raise place.mistake(f"{quoted(text)} is {error}") from None


def _read_ports(place: Place, text: str) -> tuple[int, int]:
    try:
        ports = PortRange.parse(text if "-" in text else f"{text}-{text}")
    except ValueError:
        raise place.mistake(f"{quoted(text)} is neither a port nor first-last") from None
    return ports.first, ports.last
