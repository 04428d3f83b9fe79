"""The hooks: from a configuration to verdicts."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from slim.broker.decisions import PLAIN_PEER, Direction, FlowRequest, Identity, Verdict
from slim.broker.endpoints import parse_address
from slim.broker.errors import ConfigError
from slim.broker.plugin_settings import PluginSettings
from slim.plugins.policy.networkpolicy import Plugin

if TYPE_CHECKING:
    from pathlib import Path

WEB = Identity("web-1", "shop", {"app": "web"})
DB = Identity("db-1", "shop", {"app": "db", "port.slim/sql": "5432"})
BOTH = FlowRequest(
    direction=Direction.INGRESS,
    source=WEB,
    source_address=parse_address("10.77.1.5"),
    destination=DB,
    destination_address=parse_address("10.77.2.7"),
    port=5432,
)
TO_DB = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db, namespace: shop}
spec:
  podSelector: {matchLabels: {app: db}}
  ingress:
  - from: [{podSelector: {matchLabels: {app: web}}}]
    ports: [{port: sql}]
"""
FROM_WEB = """
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: shop}
spec:
  podSelector: {matchLabels: {app: web}}
  policyTypes: [Egress]
  egress:
  - to: [{podSelector: {matchLabels: {app: db}}}]
    ports: [{port: sql}]
  - to: [{ipBlock: {cidr: 192.0.2.0/24}}]
"""


def configure(path: Path | None, plugin: Plugin | None = None) -> Plugin:
    plugin = plugin or Plugin()
    table = {"networkpolicy": {"path": str(path)}} if path else {}
    plugin.slim_configure(PluginSettings("a", "slimd.toml", table))
    return plugin


@pytest.fixture
def plugin(tmp_path: Path) -> Plugin:
    (tmp_path / "p.yaml").write_text(TO_DB + FROM_WEB)
    return configure(tmp_path)


def egress(**changes: object) -> FlowRequest:
    return replace(BOTH, direction=Direction.EGRESS, **changes)  # type: ignore[arg-type]


def verdict(plugin: Plugin, request: FlowRequest) -> Verdict:
    found = plugin.slim_decide(request)
    assert found is not None
    return found


def test_without_a_path_there_is_no_opinion() -> None:
    plugin = configure(None)
    assert plugin.slim_decide(BOTH) is None
    assert not plugin.slim_isolates(DB, Direction.INGRESS)


def test_ingress_is_decided_for_the_destination(plugin: Plugin) -> None:
    assert verdict(plugin, BOTH) == Verdict(True, "networkpolicy:shop/db ingress[0]")
    refused = verdict(plugin, replace(BOTH, source=DB))
    assert refused == Verdict(False, "networkpolicy:shop/db no ingress rule allows it")
    assert not verdict(plugin, replace(BOTH, source=PLAIN_PEER)).allow
    assert plugin.slim_decide(replace(BOTH, destination=WEB)) is None


def test_a_named_port_is_what_the_destination_declares(plugin: Plugin) -> None:
    assert not verdict(plugin, replace(BOTH, port=5433)).allow
    assert verdict(plugin, egress()).allow
    other = Identity("db-2", "shop", {"app": "db", "port.slim/sql": "5433"})
    assert not verdict(plugin, egress(destination=other)).allow
    assert verdict(plugin, egress(destination=other, port=5433)).allow


def test_a_declaration_that_is_no_port_declares_nothing(plugin: Plugin) -> None:
    broken = Identity("db-2", "shop", {"app": "db", "port.slim/sql": "x"})
    assert not verdict(plugin, replace(BOTH, destination=broken)).allow


def test_egress_to_somebody_unknown_is_provisional(plugin: Plugin) -> None:
    found = verdict(plugin, egress(destination=None))
    assert (found.allow, found.provisional) == (True, True)
    assert not verdict(plugin, egress()).provisional


def test_egress_to_somebody_unknown_is_refused_if_nobody_there_could_be_reached(
    tmp_path: Path,
) -> None:
    (tmp_path / "p.yaml").write_text(FROM_WEB.replace("port: sql", "port: 80"))
    found = verdict(configure(tmp_path), egress(destination=None, port=81))
    assert found == Verdict(False, "networkpolicy:shop/web no egress rule allows it")


def test_egress_to_an_allowed_block_is_final(plugin: Plugin) -> None:
    inside = parse_address("192.0.2.7")
    for destination in (None, PLAIN_PEER, WEB):
        found = verdict(plugin, egress(destination=destination, destination_address=inside))
        assert found == Verdict(True, "networkpolicy:shop/web egress[1]")


def test_egress_to_a_plain_peer_is_decided_by_its_address(plugin: Plugin) -> None:
    assert not verdict(plugin, egress(destination=PLAIN_PEER)).allow


def test_nothing_keeps_a_workload_from_itself(plugin: Plugin) -> None:
    own = replace(BOTH, source=DB, source_address=BOTH.destination_address)
    assert plugin.slim_decide(own) is None


@pytest.mark.parametrize("direction", [*Direction])
def test_a_workload_is_isolated_in_the_directions_of_its_policies(
    plugin: Plugin, direction: Direction
) -> None:
    assert plugin.slim_isolates(DB, direction) == (direction is Direction.INGRESS)
    assert plugin.slim_isolates(WEB, direction) == (direction is Direction.EGRESS)
    assert not plugin.slim_isolates(Identity("x", "far", {"app": "db"}), direction)


def test_a_policy_that_allows_everybody_isolates_nobody(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(TO_DB.partition("  ingress:")[0] + "  ingress: [{}]\n")
    assert not configure(tmp_path).slim_isolates(DB, Direction.INGRESS)


# --- audit


def audited(text: str) -> str:
    return text.replace(
        "namespace: shop}", "namespace: shop, annotations: {policy.slim/mode: audit}}"
    )


def test_what_a_policy_in_audit_mode_would_deny_is_allowed_and_said(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(audited(TO_DB))
    plugin = configure(tmp_path)
    assert verdict(plugin, replace(BOTH, source=DB)) == Verdict(
        True, "networkpolicy:shop/db no ingress rule allows it", audit=True
    )
    # What it would allow is as if it were not there.
    assert plugin.slim_decide(BOTH) is None
    assert not plugin.slim_isolates(DB, Direction.INGRESS)


def test_a_policy_in_audit_mode_opens_nothing_that_others_close(tmp_path: Path) -> None:
    nothing = TO_DB.replace("name: db", "name: nothing").partition("  ingress:")[0]
    (tmp_path / "p.yaml").write_text(audited(TO_DB) + "---" + nothing)
    refused = verdict(configure(tmp_path), BOTH)
    assert refused == Verdict(False, "networkpolicy:shop/nothing no ingress rule allows it")


def test_audit_at_egress_waits_for_the_destination(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(audited(FROM_WEB))
    plugin = configure(tmp_path)
    assert plugin.slim_decide(egress(destination=None)) is None
    assert verdict(plugin, egress(destination=WEB)).audit


# --- all or nothing


def test_a_mistake_refuses_everything_and_changes_nothing(tmp_path: Path, plugin: Plugin) -> None:
    (tmp_path / "q.yaml").write_text(FROM_WEB.replace("port: sql", "port: 0"))
    with pytest.raises(ConfigError) as refused:
        configure(tmp_path, plugin)
    assert refused.value.message == (
        f"{tmp_path}/q.yaml:11: document 1, NetworkPolicy shop/web: "
        "spec.egress[0].ports[0].port: 0 is not between 1 and 65535"
    )
    assert refused.value.hint
    assert verdict(plugin, BOTH).allow
    assert plugin.slim_isolates(DB, Direction.INGRESS)


def test_every_mistake_is_told_up_to_a_bound(tmp_path: Path) -> None:
    for number in range(30):
        (tmp_path / f"{number:02}.yaml").write_text("kind: Secret\napiVersion: v1")
    with pytest.raises(ConfigError) as refused:
        configure(tmp_path)
    assert len(refused.value.more) == 20
    assert refused.value.more[-1].message == f"{tmp_path}: 10 more mistakes"
    assert "slimctl policy lint" in refused.value.more[-1].hint


def test_a_relative_path_and_a_misspelt_key_are_refused() -> None:
    for table in ({"path": "policies"}, {"file": "/policies"}, {"path": ""}):
        settings = PluginSettings("a", "slimd.toml", {"networkpolicy": table})
        with pytest.raises(ConfigError, match=r"slimd.toml: \[plugins.networkpolicy\]"):
            Plugin().slim_configure(settings)
