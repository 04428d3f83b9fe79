"""The table [shaping]: what it becomes, and one clear message for each mistake."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

import pytest

from slim.broker.errors import ConfigError
from slim.broker.shaping import Shaping
from slim.broker.shaping_rules import ContainerLimit, Selector, ShapingRule, ShapingRules
from support.configuration import config_text, load_text

if TYPE_CHECKING:
    from pathlib import Path

FULL = """
[[shaping.rule]]
name = "backups"
workloads = ["backup-1", "backup-2"]
namespaces = ["ops"]
labels = {app = "backup"}
networks = ["10.77.2.0/24", "fd77::/64"]
ports = ["873", "8000-8999"]
send = "200mbit"
receive = "100mbit"
dscp = "cs1"
priority = 2
quota = "5GiB"
lifetime = "8h"
idle = "10m"

[[shaping.rule]]
name = "everybody"
send = "1gbit"

[[shaping.container]]
name = "batch"
labels = {tier = "batch"}
send = "2gbit"
"""


def test_rules_become_values(tmp_path: Path) -> None:
    rules = load_text(tmp_path, config_text(FULL)).shaping
    assert rules == ShapingRules(
        (
            ShapingRule(
                "backups",
                Selector(
                    frozenset({"backup-1", "backup-2"}),
                    frozenset({"ops"}),
                    frozenset({("app", "backup")}),
                ),
                Shaping(
                    send=25_000_000,
                    receive=12_500_000,
                    dscp=8,
                    priority=2,
                    quota=5 << 30,
                    lifetime_s=28_800,
                    idle_s=600,
                ),
                networks=(ipaddress.ip_network("10.77.2.0/24"), ipaddress.ip_network("fd77::/64")),
                ports=((873, 873), (8000, 8999)),
            ),
            ShapingRule("everybody", Selector(), Shaping(send=125_000_000)),
        ),
        (ContainerLimit("batch", Selector(labels=frozenset({("tier", "batch")})), 250_000_000),),
    )


def test_without_the_table_nothing_is_limited(tmp_path: Path) -> None:
    assert load_text(tmp_path, config_text("")).shaping == ShapingRules()


@pytest.mark.parametrize(
    ("line", "place", "part"),
    [
        ('send = "200"', "send", "'200' is not a whole number with one of the units bit, kbit"),
        ('send = "1kbit"', "send", "not between 8kbit and 400gbit"),
        ("send = 200", "send", "must be a string, not an integer"),
        ('receive = "1.5gbit"', "receive", "not a whole number"),
        ('dscp = "af15"', "dscp", "'af15' is none of"),
        ("priority = 7", "priority", "7 is not between 0 and 6"),
        ('quota = "5G"', "quota", "not a whole number with one of the units B, kB"),
        ('lifetime = "8"', "lifetime", "units s, m, h, d"),
        ('idle = "0s"', "idle", "not between 1s and"),
        ('ports = ["0"]', "ports", "'0' is neither a port nor first-last"),
        ('ports = ["90-80"]', "ports", "neither a port nor first-last"),
        ('networks = ["10.77.2.1/24"]', "networks", "bits set behind its length"),
        ('workloads = [""]', "workloads", "one of them is empty"),
        ('workloads = ["a", "a"]', "workloads", "is there twice"),
        ('labels = {"" = "x"}', "labels", "one has no name"),
        ('sent = "1gbit"', "sent", "unknown key"),
        ("", "", "'r' limits nothing"),
    ],
)
def test_a_mistake_names_rule_key_and_value(
    tmp_path: Path, line: str, place: str, part: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_text(tmp_path, config_text(f'[[shaping.rule]]\nname = "r"\n{line}\n'))
    assert "[[shaping.rule]] number 1" in caught.value.message
    assert place in caught.value.message
    assert part in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize("table", ["rule", "container"])
def test_two_of_one_name_are_a_mistake(tmp_path: Path, table: str) -> None:
    one = f'[[shaping.{table}]]\nname = "r"\nsend = "1gbit"\n'
    with pytest.raises(ConfigError, match="is the name of an earlier one"):
        load_text(tmp_path, config_text(one + one))


def test_a_container_needs_its_rate(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="send: is missing"):
        load_text(tmp_path, config_text('[[shaping.container]]\nname = "r"\n'))
