"""Rules of NetworkPolicy that the truth table cannot tell from wrong ones, row by row."""

from __future__ import annotations

import pytest

from slim.broker.plugin_api import Direction
from support.policy_questions import End, allows, ask, engine_of

INGRESS, EGRESS = Direction.INGRESS, Direction.EGRESS
SERVER = End("shop", {"app": "server"}, "10.77.2.7")


def selected(selector: str, labels: dict[str, str]) -> bool:
    """Whether a peer with these labels, in the policy's namespace, is let in."""
    engine = engine_of(f"""
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{name: p, namespace: shop}}
spec:
  podSelector: {{matchLabels: {{app: server}}}}
  ingress: [{{from: [{{podSelector: {selector}}}]}}]
""")
    return allows(ask(engine, INGRESS, End("shop", labels), SERVER))


@pytest.mark.parametrize(
    ("selector", "labels", "expected"),
    [
        # NotIn also selects what lacks the key (apimachinery, TestRequirementSelectorMatching).
        ("{matchExpressions: [{key: x, operator: NotIn, values: [a]}]}", {}, True),
        ("{matchExpressions: [{key: x, operator: NotIn, values: [a]}]}", {"y": "a"}, True),
        ("{matchExpressions: [{key: x, operator: NotIn, values: [a]}]}", {"x": "a"}, False),
        ("{matchExpressions: [{key: x, operator: NotIn, values: [a]}]}", {"x": "b"}, True),
        ("{matchExpressions: [{key: x, operator: NotIn, values: [a, '']}]}", {}, True),
        ("{matchExpressions: [{key: x, operator: NotIn, values: [a, '']}]}", {"x": ""}, False),
        # In needs the key.
        ("{matchExpressions: [{key: x, operator: In, values: ['']}]}", {}, False),
        ("{matchExpressions: [{key: x, operator: In, values: ['']}]}", {"x": ""}, True),
        ("{matchExpressions: [{key: x, operator: In, values: [a, b]}]}", {"x": "b"}, True),
        ("{matchExpressions: [{key: x, operator: In, values: [a, b]}]}", {"x": "c"}, False),
        # Exists and DoesNotExist ask for the key, whatever its value.
        ("{matchExpressions: [{key: x, operator: Exists}]}", {"x": ""}, True),
        ("{matchExpressions: [{key: x, operator: Exists}]}", {"x": "a"}, True),
        ("{matchExpressions: [{key: x, operator: Exists}]}", {"y": "a"}, False),
        ("{matchExpressions: [{key: x, operator: DoesNotExist}]}", {"y": "a"}, True),
        ("{matchExpressions: [{key: x, operator: DoesNotExist}]}", {}, True),
        ("{matchExpressions: [{key: x, operator: DoesNotExist}]}", {"x": ""}, False),
        # All of matchLabels, and all of matchExpressions.
        ("{matchLabels: {x: a, y: b}}", {"x": "a", "y": "b"}, True),
        ("{matchLabels: {x: a, y: b}}", {"x": "a"}, False),
        ("{matchLabels: {x: a, y: b}}", {"y": "b"}, False),
        ("{matchLabels: {x: a, y: b}}", {"x": "a", "y": "c"}, False),
        (
            "{matchLabels: {x: a}, matchExpressions: [{key: y, operator: Exists}]}",
            {"x": "a"},
            False,
        ),
        (
            "{matchLabels: {x: a}, matchExpressions: [{key: y, operator: Exists}]}",
            {"x": "a", "y": ""},
            True,
        ),
        # Several requirements on one key.
        (
            "{matchExpressions: [{key: x, operator: In, values: [a, b]}, "
            "{key: x, operator: In, values: [b, c]}]}",
            {"x": "a"},
            False,
        ),
        (
            "{matchExpressions: [{key: x, operator: In, values: [a, b]}, "
            "{key: x, operator: In, values: [b, c]}]}",
            {"x": "b"},
            True,
        ),
        (
            "{matchExpressions: [{key: x, operator: Exists}, "
            "{key: x, operator: NotIn, values: [a]}]}",
            {},
            False,
        ),
        (
            "{matchExpressions: [{key: x, operator: NotIn, values: [a]}, "
            "{key: x, operator: NotIn, values: [b]}]}",
            {"x": "b"},
            False,
        ),
        (
            "{matchExpressions: [{key: x, operator: Exists}, {key: x, operator: DoesNotExist}]}",
            {"x": "a"},
            False,
        ),
        ("{}", {}, True),
    ],
)
def test_selectors(selector: str, labels: dict[str, str], expected: bool) -> None:
    assert selected(selector, labels) == expected


@pytest.mark.parametrize(
    ("spec", "ingress", "egress"),
    [
        # Absent: always Ingress, and Egress if there is an egress rule.
        ("podSelector: {}", True, False),
        ("{}", True, False),
        ("ingress: [{ports: [{port: 1}]}]", True, False),
        ("egress: [{ports: [{port: 1}]}]", True, True),
        ("egress: []", True, False),
        ("{policyTypes: [], egress: [{ports: [{port: 1}]}]}", True, True),
        ("policyTypes: []", True, False),
        # Given: what it says.
        ("policyTypes: [Ingress]", True, False),
        ("policyTypes: [Egress]", False, True),
        ("policyTypes: [Egress, Ingress]", True, True),
        ("{policyTypes: [Ingress], egress: [{ports: [{port: 1}]}]}", True, False),
        ("{policyTypes: [Egress], ingress: [{ports: [{port: 1}]}]}", False, True),
    ],
)
def test_defaults_of_policy_types(spec: str, ingress: bool, egress: bool) -> None:
    """Which directions are isolated: port 80 is then refused."""
    engine = engine_of(f"""
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{name: p, namespace: shop}}
spec: {spec if spec.startswith("{") else f"{{{spec}}}"}
""")
    other = End("other")
    assert allows(ask(engine, INGRESS, other, SERVER)) == (not ingress)
    assert allows(ask(engine, EGRESS, SERVER, other)) == (not egress)


@pytest.mark.parametrize(
    ("ports", "port", "protocol", "expected"),
    [
        # A name is resolved at the destination, and the protocol must be the same.
        ("[{port: web}]", 8080, "TCP", True),
        ("[{port: web, protocol: UDP}]", 8080, "UDP", False),
        ("[{port: web}]", 8080, "UDP", False),
        ("[{port: dns, protocol: UDP}]", 53, "UDP", True),
        ("[{port: dns}]", 53, "TCP", False),
        ("[{port: web}]", 80, "TCP", False),
        ("[{port: nobody}]", 8080, "TCP", False),
        # Without a protocol TCP is meant; without a port all of the protocol's.
        ("[{port: 8080}]", 8080, "TCP", True),
        ("[{port: 8080}]", 8080, "UDP", False),
        ("[{protocol: UDP}]", 9, "UDP", True),
        ("[{protocol: UDP}]", 9, "TCP", False),
        ("[{}]", 9, "TCP", True),
        ("[{}]", 9, "UDP", False),
        ("[]", 9, "SCTP", True),
        # Both ends of a range are in it.
        ("[{port: 80, endPort: 82}]", 79, "TCP", False),
        ("[{port: 80, endPort: 82}]", 80, "TCP", True),
        ("[{port: 80, endPort: 82}]", 82, "TCP", True),
        ("[{port: 80, endPort: 82}]", 83, "TCP", False),
        ("[{port: 80, endPort: 80}]", 80, "TCP", True),
        ("[{port: 80, endPort: 82, protocol: UDP}]", 81, "TCP", False),
        ("[{port: 1, endPort: 65535}]", 65535, "TCP", True),
    ],
)
@pytest.mark.parametrize("direction", [INGRESS, EGRESS])
def test_ports(ports: str, port: int, protocol: str, expected: bool, direction: Direction) -> None:
    engine = engine_of(f"""
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{name: p, namespace: shop}}
spec:
  policyTypes: [Ingress, Egress]
  ingress: [{{ports: {ports}}}]
  egress: [{{ports: {ports}}}]
""")
    declared = {("TCP", "web"): 8080, ("UDP", "dns"): 53}
    # What the source calls its ports is of no account.
    source = End("shop", {}, "10.77.1.5", {("TCP", "nobody"): 8080})
    destination = End("shop", {}, "10.77.2.7", declared)
    assert allows(ask(engine, direction, source, destination, port, protocol)) == expected


BLOCK = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: p, namespace: shop}
spec:
  policyTypes: [Ingress, Egress]
  ingress: &rules
  - from:
    - ipBlock: {cidr: 192.0.2.0/24, except: [192.0.2.128/25, 192.0.2.7/32]}
    - ipBlock: {cidr: 192.0.2.200/32}
    - ipBlock: {cidr: "2001:db8::/32", except: ["2001:db8:1::/48"]}
"""


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("192.0.2.1", True),
        ("192.0.2.7", False),
        ("192.0.2.129", False),
        # What one block excepts another may still name.
        ("192.0.2.200", True),
        ("192.0.3.1", False),
        ("2001:db8::1", True),
        ("2001:db8:1::1", False),
        ("2001:db9::1", False),
    ],
)
@pytest.mark.parametrize("namespace", ["", "far"])
def test_blocks_of_addresses(address: str, expected: bool, namespace: str) -> None:
    """Of workloads and of others: an address is an address."""
    engine = engine_of(BLOCK.replace("&rules", ""))
    assert allows(ask(engine, INGRESS, End(namespace, {}, address), SERVER)) == expected


def test_an_endpoint_that_nobody_brokers_is_in_no_namespace() -> None:
    engine = engine_of("""
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: p, namespace: shop}
spec: {ingress: [{from: [{namespaceSelector: {}}, {podSelector: {}}]}]}
""")
    assert not allows(ask(engine, INGRESS, End(), SERVER))
    assert allows(ask(engine, INGRESS, End("far"), SERVER))


def test_a_rule_without_peers_lets_everybody_in_and_no_rule_nobody() -> None:
    text = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: p, namespace: shop}
spec: {ingress: RULES}
"""
    for rules, expected in (("[{}]", True), ("[{from: []}]", True), ("[]", False)):
        engine = engine_of(text.replace("RULES", rules))
        for source in (End(), End("far"), End("shop")):
            assert allows(ask(engine, INGRESS, source, SERVER)) == expected


def test_a_namespace_has_its_name_as_label_and_those_of_its_document() -> None:
    engine = engine_of("""
apiVersion: v1
kind: Namespace
metadata: {name: far, labels: {team: a}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: p, namespace: shop}
spec:
  ingress:
  - from:
    - namespaceSelector: {matchLabels: {team: a}}
    - namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: near}}
""")
    for namespace, expected in (("far", True), ("near", True), ("shop", False)):
        assert allows(ask(engine, INGRESS, End(namespace), SERVER)) == expected
