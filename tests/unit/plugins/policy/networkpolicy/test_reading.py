"""Every class of malformed document: one mistake each, with its place, and nothing is made of it.

The classes are those of Kubernetes' pkg/apis/networking/validation (validation_test.go), of the
custom resource definition of ClusterNetworkPolicy, and of strict decoding.
"""

from __future__ import annotations

import pytest

from slim.plugins.policy.networkpolicy.loading import FileContent, read_text

NETWORK = """apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: shop}
"""
CLUSTER = """apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: web}
"""
SPEC = "tier: Admin, priority: 1, subject: {namespaces: {}}"
LONG = "a" * 64


def read(text: str) -> FileContent:
    return read_text("web.yaml", text.encode())


def only(text: str, *, is_warning: bool = False) -> tuple[str, str]:
    """Path and message of the one mistake in a document; nothing may have been made of it."""
    content = read(text)
    assert len(content.mistakes) == 1, [str(each) for each in content.mistakes]
    (mistake,) = content.mistakes
    assert mistake.is_warning == is_warning
    assert bool(content.resources) == is_warning
    assert mistake.file == "web.yaml"
    assert mistake.line > 0
    assert mistake.remedy
    return mistake.path, mistake.message


def peer(text: str) -> str:
    return f"{NETWORK}spec: {{ingress: [{{from: [{text}]}}]}}"


def port(text: str) -> str:
    return f"{NETWORK}spec: {{ingress: [{{ports: [{text}]}}]}}"


def pods(text: str) -> str:
    return f"{NETWORK}spec: {{podSelector: {text}}}"


def rule(text: str) -> str:
    return f"{CLUSTER}spec: {{{SPEC}, egress: [{text}]}}"


FROM, PORT, PODS = "spec.ingress[0].from[0]", "spec.ingress[0].ports[0]", "spec.podSelector"
RULE = "spec.egress[0]"


@pytest.mark.parametrize(
    ("text", "path", "message"),
    [
        # --- peers
        (peer("{}"), FROM, "names no peer"),
        (peer("{podSelector: null}"), FROM, "names no peer"),
        (peer("null"), FROM, "the item is empty"),
        (
            peer("{podSelector: {}, ipBlock: {cidr: 10.0.0.0/8}}"),
            FROM,
            "has both ipBlock and another selector",
        ),
        (
            peer("{namespaceSelector: {}, ipBlock: {cidr: 10.0.0.0/8}}"),
            FROM,
            "has both ipBlock and another selector",
        ),
        (peer("{podselector: {}}"), f"{FROM}.podselector", "there is no such field"),
        (peer("everybody"), FROM, "must be a mapping, not text, 'everybody'"),
        # --- blocks
        (peer("{ipBlock: {}}"), f"{FROM}.ipBlock.cidr", "is missing"),
        (peer("{ipBlock: {cidr: ''}}"), f"{FROM}.ipBlock.cidr", "'' is no block of addresses"),
        (
            peer("{ipBlock: {cidr: 10.0.0.0}}"),
            f"{FROM}.ipBlock.cidr",
            "the prefix length is missing",
        ),
        (
            peer("{ipBlock: {cidr: 10.0.0.0/33}}"),
            f"{FROM}.ipBlock.cidr",
            "'10.0.0.0/33' is no block of addresses",
        ),
        (
            peer("{ipBlock: {cidr: 10.0.0.0/255.0.0.0}}"),
            f"{FROM}.ipBlock.cidr",
            "the prefix length is no number",
        ),
        (
            peer("{ipBlock: {cidr: 010.0.0.0/8}}"),
            f"{FROM}.ipBlock.cidr",
            "'010.0.0.0/8' is no block of addresses",
        ),
        (
            peer("{ipBlock: {cidr: 'fe80::%eth0/64'}}"),
            f"{FROM}.ipBlock.cidr",
            "is no block of addresses: has a zone",
        ),
        (
            peer("{ipBlock: {cidr: '::ffff:10.0.0.0/104'}}"),
            f"{FROM}.ipBlock.cidr",
            "is an IPv4 address in IPv6 form",
        ),
        (peer("{ipBlock: {cidr: 10}}"), f"{FROM}.ipBlock.cidr", "must be text, not a number, 10"),
        (
            peer("{ipBlock: {cidr: 10.0.0.0/8, except: [11.0.0.0/16]}}"),
            f"{FROM}.ipBlock.except[0]",
            "11.0.0.0/16 is not a part of 10.0.0.0/8",
        ),
        (
            peer("{ipBlock: {cidr: 10.0.0.0/8, except: [10.0.0.0/8]}}"),
            f"{FROM}.ipBlock.except[0]",
            "10.0.0.0/8 is not a part of 10.0.0.0/8",
        ),
        (
            peer("{ipBlock: {cidr: 10.0.0.0/8, except: ['fd00::/16']}}"),
            f"{FROM}.ipBlock.except[0]",
            "fd00::/16 is not a part of 10.0.0.0/8",
        ),
        (
            peer("{ipBlock: {cidr: 10.0.0.0/8, except: [x]}}"),
            f"{FROM}.ipBlock.except[0]",
            "'x' is no block of addresses",
        ),
        # --- ports
        (
            port("{protocol: ICMP}"),
            f"{PORT}.protocol",
            "'ICMP' is none of TCP, UDP, SCTP",
        ),
        (port("{protocol: tcp}"), f"{PORT}.protocol", "'tcp' is none of TCP, UDP, SCTP"),
        (port("{port: 0}"), f"{PORT}.port", "0 is not between 1 and 65535"),
        (port("{port: -1}"), f"{PORT}.port", "-1 is not between 1 and 65535"),
        (port("{port: 65536}"), f"{PORT}.port", "65536 is not between 1 and 65535"),
        (
            port("{port: 1.5}"),
            f"{PORT}.port",
            "must be a whole number from 1 to 65535, not a number",
        ),
        (
            port("{port: 0x50}"),
            f"{PORT}.port",
            "must be a whole number from 1 to 65535, not a number",
        ),
        (port("{port: true}"), f"{PORT}.port", "not a truth value, True"),
        (port("{port: '80'}"), f"{PORT}.port", "the port name '80' must be of"),
        (port("{port: ''}"), f"{PORT}.port", "the port name '' must have 1 to 15 characters"),
        (port("{port: a-name-too-long-for}"), f"{PORT}.port", "must have 1 to 15 characters"),
        (port("{port: Http}"), f"{PORT}.port", "the port name 'Http' must be of"),
        (port("{port: a--b}"), f"{PORT}.port", "the port name 'a--b' must be of"),
        (port("{port: -a}"), f"{PORT}.port", "the port name '-a' must be of"),
        (port("{port: 80, endPort: 79}"), f"{PORT}.endPort", "79 is less than port 80"),
        (port("{port: 80, endPort: 65536}"), f"{PORT}.endPort", "65536 is not between"),
        (port("{port: http, endPort: 80}"), f"{PORT}.endPort", "port is a name"),
        (port("{endPort: 80}"), f"{PORT}.endPort", "there is no port that it could be the end of"),
        (port("{portt: 80}"), f"{PORT}.portt", "there is no such field"),
        # --- selectors
        (pods("{matchLabels: {'a b': c}}"), f"{PODS}.matchLabels.a b", "the label key 'a b' must"),
        (pods("{matchLabels: {/a: c}}"), f"{PODS}.matchLabels./a", "the part before '/'"),
        (pods("{matchLabels: {UP.com/a: c}}"), f"{PODS}.matchLabels.UP.com/a", "the part before"),
        (pods(f"{{matchLabels: {{{LONG}: c}}}}"), f"{PODS}.matchLabels.{LONG}", "1 to 63"),
        (
            pods("{matchLabels: {a: -c}}"),
            f"{PODS}.matchLabels.a",
            "the label value '-c' must be of",
        ),
        (pods(f"{{matchLabels: {{a: {LONG}}}}}"), f"{PODS}.matchLabels.a", "more than 63"),
        (
            pods("{matchLabels: {a: true}}"),
            f"{PODS}.matchLabels.a",
            "must be text, not a truth value",
        ),
        (
            pods("{matchLabels: {a: yes}}"),
            f"{PODS}.matchLabels.a",
            "must be text, not a truth value",
        ),
        (pods("{matchLabels: {a: 1}}"), f"{PODS}.matchLabels.a", "must be text, not a number, 1"),
        (
            pods("{matchLabels: {a: 1.0}}"),
            f"{PODS}.matchLabels.a",
            "must be text, not a number, '1.0'",
        ),
        (pods("{matchLabels: {a: }}"), f"{PODS}.matchLabels", "the label 'a' has no value"),
        (pods("{matchLabels: [a]}"), f"{PODS}.matchLabels", "must be a mapping, not a list"),
        (pods("{matchlabels: {a: b}}"), f"{PODS}.matchlabels", "there is no such field"),
        (pods("{app: web}"), f"{PODS}.app", "there is no such field"),
        (
            pods("{matchExpressions: [{key: a, operator: In, values: []}]}"),
            f"{PODS}.matchExpressions[0].values",
            "In needs at least one value",
        ),
        (
            pods("{matchExpressions: [{key: a, operator: NotIn}]}"),
            f"{PODS}.matchExpressions[0].values",
            "is missing",
        ),
        (
            pods("{matchExpressions: [{key: a, operator: Exists, values: [b]}]}"),
            f"{PODS}.matchExpressions[0].values",
            "Exists takes no values",
        ),
        (
            pods("{matchExpressions: [{key: a, operator: DoesNotExist, values: [b]}]}"),
            f"{PODS}.matchExpressions[0].values",
            "DoesNotExist takes no values",
        ),
        (
            pods("{matchExpressions: [{key: a, operator: in, values: [b]}]}"),
            f"{PODS}.matchExpressions[0].operator",
            "'in' is none of In, NotIn, Exists, DoesNotExist",
        ),
        (
            pods("{matchExpressions: [{operator: Exists}]}"),
            f"{PODS}.matchExpressions[0].key",
            "is missing",
        ),
        (
            pods("{matchExpressions: [{key: a}]}"),
            f"{PODS}.matchExpressions[0].operator",
            "is missing",
        ),
        (
            pods("{matchExpressions: [{key: 'a b', operator: Exists}]}"),
            f"{PODS}.matchExpressions[0].key",
            "the label key 'a b' must be of",
        ),
        (
            pods("{matchExpressions: [{key: a, operator: In, values: [b!]}]}"),
            f"{PODS}.matchExpressions[0].values[0]",
            "the label value 'b!' must be of",
        ),
        (
            pods("{matchExpressions: [{key: a, operator: In, values: [1]}]}"),
            f"{PODS}.matchExpressions[0].values[0]",
            "must be text, not a number, 1",
        ),
        # --- the policy
        (f"{NETWORK}spec: {{policyTypes: [Foo]}}", "spec.policyTypes[0]", "is none of Ingress"),
        (f"{NETWORK}spec: {{policyTypes: [ingress]}}", "spec.policyTypes[0]", "is none of"),
        (
            f"{NETWORK}spec: {{policyTypes: [Ingress, Egress, Ingress]}}",
            "spec.policyTypes",
            "may not have more than two items",
        ),
        (
            f"{NETWORK}spec: {{policyTypes: Ingress}}",
            "spec.policyTypes",
            "must be a list, not text",
        ),
        (f"{NETWORK}spec: {{ingres: []}}", "spec.ingres", "there is no such field"),
        (f"{NETWORK}spec: {{ingress: {{}}}}", "spec.ingress", "must be a list, not a mapping"),
        (f"{NETWORK}spec: {{ingress: [null]}}", "spec.ingress[0]", "the item is empty"),
        (f"{NETWORK}spec: {{ingress: [{{to: []}}]}}", "spec.ingress[0].to", "no such field"),
        (f"{NETWORK}spec: {{egress: [{{from: []}}]}}", "spec.egress[0].from", "no such field"),
        (NETWORK, "spec", "is missing"),
        (f"{NETWORK}spec: []", "spec", "must be a mapping, not a list"),
        (f"{NETWORK}spec: {{}}\nspecs: {{}}", "specs", "there is no such field"),
        # --- metadata
        (
            NETWORK.replace("{name: web, namespace: shop}", "{namespace: shop}") + "spec: {}",
            "metadata.name",
            "is missing",
        ),
        (NETWORK.replace("web", "Web") + "spec: {}", "metadata.name", "the name 'Web' must be of"),
        (NETWORK.replace("web", "''") + "spec: {}", "metadata.name", "the name '' is empty"),
        (NETWORK.replace("web", "a" * 254) + "spec: {}", "metadata.name", "more than 253"),
        (NETWORK.replace("shop", "a.b") + "spec: {}", "metadata.namespace", "'a.b' must be of"),
        (NETWORK.replace("shop", LONG) + "spec: {}", "metadata.namespace", "more than 63"),
        (NETWORK.replace("shop", "''") + "spec: {}", "metadata.namespace", "'' is empty"),
        (NETWORK.replace("shop", "yes") + "spec: {}", "metadata.namespace", "must be text"),
        (
            NETWORK.replace("shop", "shop, label: {}") + "spec: {}",
            "metadata.label",
            "no such field",
        ),
        (
            NETWORK.replace("shop", "shop, labels: {a: '!'}") + "spec: {}",
            "metadata.labels.a",
            "the label value '!' must be of",
        ),
        (
            NETWORK.replace("shop", "shop, annotations: {policy.slim/mode: off}") + "spec: {}",
            "metadata.annotations.policy.slim/mode",
            "must be text, not a truth value",
        ),
        (
            NETWORK.replace("shop", "shop, annotations: {policy.slim/mode: watch}") + "spec: {}",
            "metadata.annotations.policy.slim/mode",
            "'watch' is none of enforce, audit",
        ),
        (
            NETWORK.replace("shop", "shop, annotations: {policy.slim/modes: audit}") + "spec: {}",
            "metadata.annotations.policy.slim/modes",
            "there is no such annotation",
        ),
        (f"{NETWORK.partition('metadata')[0]}spec: {{}}", "metadata", "is missing"),
        # --- kinds
        ("kind: NetworkPolicy\nmetadata: {name: a}", "apiVersion", "is missing"),
        ("apiVersion: v1\nmetadata: {name: a}", "kind", "is missing"),
        (
            NETWORK.replace("networking.k8s.io/v1", "extensions/v1beta1") + "spec: {}",
            "apiVersion",
            "'extensions/v1beta1' is not read here",
        ),
        (
            "apiVersion: policy.networking.k8s.io/v1alpha1\nkind: AdminNetworkPolicy\nspec: {}",
            "kind",
            "'AdminNetworkPolicy' is no kind that is read here",
        ),
        ("apiVersion: v1\nkind: Secret", "kind", "'Secret' is no kind that is read here"),
        ("[]", "", "must be a mapping, not a list"),
        ("text", "", "must be a mapping, not text, 'text'"),
        # --- namespaces
        (
            "apiVersion: v1\nkind: Namespace\nmetadata: {name: a.b}",
            "metadata",
            "the namespace 'a.b' must be of",
        ),
        (
            "apiVersion: v1\nkind: Namespace\nmetadata: {name: a, namespace: b}",
            "metadata.namespace",
            "this kind belongs to no namespace",
        ),
        (
            "apiVersion: v1\nkind: Namespace\n"
            "metadata: {name: a, labels: {kubernetes.io/metadata.name: b}}",
            "metadata",
            "the label kubernetes.io/metadata.name is 'b', not the namespace's name",
        ),
        # --- ClusterNetworkPolicy
        (CLUSTER, "spec", "is missing"),
        (
            f"{CLUSTER}spec: {{priority: 1, subject: {{namespaces: {{}}}}}}",
            "spec.tier",
            "is missing",
        ),
        (
            f"{CLUSTER}spec: {{tier: Admin, subject: {{namespaces: {{}}}}}}",
            "spec.priority",
            "missing",
        ),
        (f"{CLUSTER}spec: {{tier: Admin, priority: 1}}", "spec.subject", "is missing"),
        (
            f"{CLUSTER}spec: {{{SPEC.replace('Admin', 'admin')}}}",
            "spec.tier",
            "'admin' is none of Admin, Baseline",
        ),
        (
            f"{CLUSTER}spec: {{{SPEC.replace('1', '1001')}}}",
            "spec.priority",
            "1001 is not between 0 and 1000",
        ),
        (f"{CLUSTER}spec: {{{SPEC.replace('1', '-1')}}}", "spec.priority", "-1 is not between"),
        (
            f"{CLUSTER}spec: {{{SPEC.replace('{namespaces: {}}', '{}')}}}",
            "spec.subject",
            "must have either namespaces or pods",
        ),
        (
            f"{CLUSTER}spec: {{{SPEC.replace('namespaces: {}', 'pods: {}')}}}",
            "spec.subject.pods.podSelector",
            "is missing",
        ),
        (
            CLUSTER.replace("web", "web, namespace: a") + f"spec: {{{SPEC}}}",
            "metadata.namespace",
            "no namespace",
        ),
        (rule("{to: [{namespaces: {}}]}"), f"{RULE}.action", "is missing"),
        (rule("{action: Deny}"), f"{RULE}.to", "is missing"),
        (rule("{action: Deny, to: []}"), f"{RULE}.to", "must have at least one item"),
        (
            rule(f"{{action: Deny, to: [{', '.join(['{namespaces: {}}'] * 26)}]}}"),
            f"{RULE}.to",
            "has 26 items, and 25 is the most",
        ),
        (
            rule(", ".join(["{action: Deny, to: [{namespaces: {}}]}"] * 26)),
            "spec.egress",
            "has 26 items, and 25 is the most",
        ),
        (rule("{action: Allow, to: [{namespaces: {}}]}"), f"{RULE}.action", "'Allow' is none of"),
        (
            rule(f"{{name: {'a' * 101}, action: Deny, to: [{{namespaces: {{}}}}]}}"),
            f"{RULE}.name",
            "has more than 100 characters",
        ),
        (rule("{action: Deny, to: [{}]}"), f"{RULE}.to[0]", "must have exactly one of"),
        (
            rule("{action: Deny, to: [{namespaces: {}, pods: {podSelector: {}}}]}"),
            f"{RULE}.to[0]",
            "must have exactly one of",
        ),
        (
            rule("{action: Deny, to: [{networks: []}]}"),
            f"{RULE}.to[0].networks",
            "must have at least one item",
        ),
        (
            rule("{action: Deny, to: [{networks: [10.0.0.0/8, 10.0.0.0/8]}]}"),
            f"{RULE}.to[0].networks",
            "has an item twice",
        ),
        (
            rule("{action: Deny, to: [{networks: [x]}]}"),
            f"{RULE}.to[0].networks[0]",
            "'x' is no block of addresses",
        ),
        (
            rule("{action: Deny, to: [{namespaces: {}}], ports: []}"),
            f"{RULE}.ports",
            "there is no such field",
        ),
        (
            rule("{action: Deny, to: [{namespaces: {}}], protocols: []}"),
            f"{RULE}.protocols",
            "must have at least one item",
        ),
        (
            rule("{action: Deny, to: [{namespaces: {}}], protocols: [{icmp: {}}]}"),
            f"{RULE}.protocols[0].icmp",
            "there is no such field",
        ),
        (
            rule("{action: Deny, to: [{namespaces: {}}], protocols: [{tcp: {}}]}"),
            f"{RULE}.protocols[0].tcp.destinationPort",
            "is missing",
        ),
        (
            rule(
                "{action: Deny, to: [{namespaces: {}}], "
                "protocols: [{tcp: {destinationPort: {number: 0}}}]}"
            ),
            f"{RULE}.protocols[0].tcp.destinationPort.number",
            "0 is not between 1 and 65535",
        ),
        (
            rule(
                "{action: Deny, to: [{namespaces: {}}], "
                "protocols: [{tcp: {destinationPort: {range: {start: 2, end: 2}}}}]}"
            ),
            f"{RULE}.protocols[0].tcp.destinationPort.range",
            "start 2 is not less than end 2",
        ),
        (
            rule(
                "{action: Deny, to: [{namespaces: {}}], "
                "protocols: [{tcp: {destinationPort: {range: {start: 2}}}}]}"
            ),
            f"{RULE}.protocols[0].tcp.destinationPort.range.end",
            "is missing",
        ),
        (
            rule(
                "{action: Deny, to: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {}}}]}"
            ),
            f"{RULE}.protocols[0].tcp.destinationPort",
            "must have either number or range",
        ),
        (
            rule(
                "{action: Deny, to: [{networks: [10.0.0.0/8]}], "
                "protocols: [{destinationNamedPort: http}]}"
            ),
            f"{RULE}.protocols",
            "destinationNamedPort with networks",
        ),
        (
            rule(
                "{action: Deny, to: [{namespaces: {}}], protocols: [{destinationNamedPort: '1'}]}"
            ),
            f"{RULE}.protocols[0].destinationNamedPort",
            "the port name '1' must be of",
        ),
    ],
)
def test_one_mistake_is_told_with_its_place(text: str, path: str, message: str) -> None:
    found, said = only(text)
    assert found == path
    assert message in said


@pytest.mark.parametrize(
    ("text", "path", "message"),
    [
        (
            peer("{ipBlock: {cidr: 10.0.0.1/8}}"),
            f"{FROM}.ipBlock.cidr",
            "10.0.0.1/8 has bits behind its prefix",
        ),
        (
            f"{NETWORK}spec: {{policyTypes: [Ingress], egress: [{{}}]}}",
            "spec.egress",
            "these rules have no effect: policyTypes does not name Egress",
        ),
        (
            rule("{action: Accept, to: [{nodes: {}}]}"),
            f"{RULE}.to",
            "('nodes'): this rule accepts nothing",
        ),
        (
            rule("{action: Pass, to: [{domainNames: [a]}]}"),
            f"{RULE}.to",
            "('domainNames'): this rule denies everything",
        ),
        (
            rule("{action: Deny, to: [{later: {}}]}"),
            f"{RULE}.to",
            "('later'): this rule denies everything",
        ),
    ],
)
def test_what_is_lawful_but_strange_is_a_warning(text: str, path: str, message: str) -> None:
    found, said = only(text, is_warning=True)
    assert found == path
    assert message in said


def test_all_mistakes_of_a_document_are_found_in_one_look() -> None:
    text = f"""{NETWORK}spec:
  podSelector: {{matchLabels: {{a: 1}}}}
  policyTypes: [Foo]
  ingress:
  - ports: [{{port: 0}}, {{port: 80, endPort: 1}}]
    from:
    - {{}}
"""
    assert [(each.line, each.path) for each in read(text).mistakes] == [
        (5, "spec.podSelector.matchLabels.a"),
        (6, "spec.policyTypes[0]"),
        (8, "spec.ingress[0].ports[0].port"),
        (8, "spec.ingress[0].ports[1].endPort"),
        (10, "spec.ingress[0].from[0]"),
    ]


def test_a_mistake_prints_file_line_document_path_and_message() -> None:
    text = f"{NETWORK}spec: {{}}\n---\n{port('{port: 0}')}"
    (mistake,) = read(text).mistakes
    assert str(mistake) == (
        "web.yaml:9: document 2, NetworkPolicy shop/web: spec.ingress[0].ports[0].port: "
        "0 is not between 1 and 65535"
    )


def test_a_misspelt_field_or_word_is_recognised() -> None:
    (field,) = read(f"{NETWORK}spec: {{podselector: {{}}}}").mistakes
    (word,) = read(port("{protocol: tcp}")).mistakes
    assert field.remedy == "did you mean podSelector?"
    assert word.remedy == "did you mean TCP?"


def test_what_kubectl_prints_is_read() -> None:
    text = """
apiVersion: v1
kind: List
metadata: {resourceVersion: ""}
items:
- apiVersion: networking.k8s.io/v1
  kind: NetworkPolicy
  metadata:
    annotations: {kubectl.kubernetes.io/last-applied-configuration: "{}"}
    creationTimestamp: "2024-01-01T00:00:00Z"
    generation: 1
    labels: {a: b}
    managedFields: [{manager: kubectl}]
    name: web
    namespace: shop
    resourceVersion: "1"
    uid: 2c8a
  spec: {podSelector: {}, policyTypes: [Ingress]}
  status: {}
"""
    content = read(text)
    assert content.mistakes == ()
    assert [type(each).__name__ for each in content.resources] == ["NetworkPolicy"]


def test_a_policy_without_a_namespace_is_in_default() -> None:
    (policy,) = read(NETWORK.replace(", namespace: shop", "") + "spec: {}").resources
    assert getattr(policy, "namespace", "") == "default"
