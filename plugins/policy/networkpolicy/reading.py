"""From a document to a policy: NetworkPolicy and Namespace, and what all kinds have in common.

Source of the rules: Kubernetes' pkg/apis/networking/validation and its defaults; like kubectl's
strict mode a field that does not exist is a mistake, since a policy without it means another thing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from slim.broker.plugin_api import Direction
from slim.plugins.policy.networkpolicy.mistakes import shown
from slim.plugins.policy.networkpolicy.model import (
    EVERYTHING,
    NAMESPACE_NAME_LABEL,
    AllowRule,
    AnyPeer,
    AnyPort,
    Mode,
    NamedPort,
    Namespace,
    NetworkPolicy,
    NumberedPorts,
    PodPeer,
    Protocol,
)
from slim.plugins.policy.networkpolicy.names import (
    check_dns_label,
    check_port_name,
    check_subdomain,
)
from slim.plugins.policy.networkpolicy.selectors import read_block, read_labels, read_selector

if TYPE_CHECKING:
    from slim.plugins.policy.networkpolicy.fields import Field, Report
    from slim.plugins.policy.networkpolicy.model import Peer, Port

OWN_PREFIX = "policy.slim/"
MODE_ANNOTATION = f"{OWN_PREFIX}mode"
MAX_PORT = 65535

_DOCUMENT = ("apiVersion", "kind", "metadata", "spec", "status")
_METADATA = (
    "name",
    "namespace",
    "labels",
    "annotations",
    "creationTimestamp",
    "deletionGracePeriodSeconds",
    "deletionTimestamp",
    "finalizers",
    "generateName",
    "generation",
    "managedFields",
    "ownerReferences",
    "resourceVersion",
    "selfLink",
    "uid",
)
_TYPES = {"Ingress": Direction.INGRESS, "Egress": Direction.EGRESS}
_PEER_KEYS = {Direction.INGRESS: "from", Direction.EGRESS: "to"}


@dataclass(frozen=True, slots=True)
class Metadata:
    name: str
    namespace: str
    labels: dict[str, str]
    mode: Mode


def read_metadata(fields: dict[str, Field], document: Field, *, namespaced: bool) -> Metadata:
    """Whatever is wrong is noted; the result then has something in its place."""
    if "metadata" not in fields:
        document.missing("metadata", "every policy has a name: metadata: {name: ...}")
        return Metadata("", "", {}, Mode.ENFORCE)
    own = fields["metadata"]
    entries = own.entries(_METADATA)
    name, namespace = "", "default" if namespaced else ""
    if "name" not in entries:
        own.missing("name", "verdicts are reported by it")
    else:
        text = entries["name"].text()
        wrong = "" if text is None else check_subdomain(text) if text else "is empty"
        if wrong:
            entries["name"].mistake(f"the name {shown(text)} {wrong}", "choose another name")
        name = text or ""
    if "namespace" in entries:
        text = entries["namespace"].text()
        wrong = "" if text is None else check_dns_label(text) if text else "is empty"
        if not namespaced:
            entries["namespace"].mistake("this kind belongs to no namespace", "leave it out")
        elif wrong:
            entries["namespace"].mistake(f"the namespace {shown(text)} {wrong}", "name another")
        namespace = text or "" if namespaced else ""
    labels = read_labels(entries["labels"]) if "labels" in entries else {}
    mode = _read_mode(entries["annotations"]) if "annotations" in entries else Mode.ENFORCE
    return Metadata(name, namespace, labels, mode)


def _read_mode(own: Field) -> Mode:
    """Annotations: only those with our prefix mean anything here."""
    mode = Mode.ENFORCE
    for key, each in own.children().items():
        value = each.text()
        if not key.startswith(OWN_PREFIX):
            continue
        if key != MODE_ANNOTATION:
            each.mistake("there is no such annotation", f"did you mean {MODE_ANNOTATION}?")
        elif value is not None:
            chosen = each.choice([*Mode])
            mode = Mode(chosen) if chosen is not None else mode
    return mode


def document_fields(document: Field) -> dict[str, Field]:
    return document.entries(_DOCUMENT)


def read_namespace(document: Field, report: Report) -> Namespace | None:
    fields = document_fields(document)
    metadata = read_metadata(fields, document, namespaced=False)
    wrong = check_dns_label(metadata.name) if metadata.name else ""
    if wrong:
        fields["metadata"].mistake(f"the namespace {shown(metadata.name)} {wrong}", "rename it")
    automatic = metadata.labels.get(NAMESPACE_NAME_LABEL, metadata.name)
    if automatic != metadata.name:
        fields["metadata"].mistake(
            f"the label {NAMESPACE_NAME_LABEL} is {shown(automatic)}, not the namespace's name",
            "leave it out: every namespace has it by itself",
        )
    labels = {**metadata.labels, NAMESPACE_NAME_LABEL: metadata.name}
    return Namespace(name=metadata.name, labels=tuple(sorted(labels.items())), origin=report.origin)


def read_network_policy(document: Field, report: Report) -> NetworkPolicy | None:
    fields = document_fields(document)
    metadata = read_metadata(fields, document, namespaced=True)
    if "spec" not in fields:
        document.missing("spec", "without it the policy would deny all that is sent to anybody")
        return None
    spec = fields["spec"].entries(("podSelector", "policyTypes", "ingress", "egress"))
    pods = read_selector(spec["podSelector"]) if "podSelector" in spec else EVERYTHING
    rules = {
        direction: _read_rules(spec[direction.value], direction, metadata.namespace)
        for direction in Direction
        if direction.value in spec
    }
    isolated = _read_types(spec, rules)
    return NetworkPolicy(
        name=metadata.name,
        namespace=metadata.namespace,
        pods=pods,
        rules=tuple(
            (direction, tuple(rules.get(direction, ())))
            for direction in (Direction.INGRESS, Direction.EGRESS)
            if direction in isolated
        ),
        mode=metadata.mode,
        origin=report.origin,
    )


def _read_types(spec: dict[str, Field], rules: dict[Direction, list[AllowRule]]) -> set[Direction]:
    """The directions that the policy isolates; the default follows from what it has rules for."""
    listed = spec["policyTypes"].items() if "policyTypes" in spec else []
    if len(listed) > len(_TYPES):
        spec["policyTypes"].mistake("may not have more than two items", "Ingress and Egress")
        listed = []
    isolated = set()
    for each in listed:
        chosen = each.choice([*_TYPES])
        if chosen is not None:
            isolated.add(_TYPES[chosen])
    if not listed:
        isolated.add(Direction.INGRESS)
        if rules.get(Direction.EGRESS):
            isolated.add(Direction.EGRESS)
        return isolated
    for direction in Direction if len(isolated) == len(listed) else ():
        if rules.get(direction) and direction not in isolated:
            spec[direction.value].warn(
                f"these rules have no effect: policyTypes does not name {direction.capitalize()}",
                "add it to policyTypes, or take the rules out",
            )
    return isolated


def _read_rules(own: Field, direction: Direction, namespace: str) -> list[AllowRule]:
    return [_read_rule(each, direction, namespace) for each in own.items()]


def _read_rule(own: Field, direction: Direction, namespace: str) -> AllowRule:
    key = _PEER_KEYS[direction]
    fields = own.entries(("ports", key))
    listed = fields[key].items() if key in fields else []
    peers = [_read_peer(each, namespace) for each in listed]
    ports = [_read_port(each) for each in fields["ports"].items()] if "ports" in fields else []
    return AllowRule(
        tuple(peer for peer in peers if peer is not None) if listed else (AnyPeer(),),
        tuple(port for port in ports if port is not None) if ports else (AnyPort(),),
    )


def _read_peer(own: Field, namespace: str) -> Peer | None:
    fields = own.entries(("podSelector", "namespaceSelector", "ipBlock"))
    if not fields:
        if own.is_mapping and not own.children():
            own.mistake(
                "names no peer",
                "write podSelector, namespaceSelector or ipBlock; to mean everybody leave the "
                "whole list out",
            )
        return None
    if "ipBlock" in fields:
        if len(fields) > 1:
            own.mistake(
                "has both ipBlock and another selector", "make two items of it: either will do"
            )
        return read_block(fields["ipBlock"])
    pods = read_selector(fields["podSelector"]) if "podSelector" in fields else EVERYTHING
    if "namespaceSelector" in fields:
        return PodPeer(read_selector(fields["namespaceSelector"]), pods)
    return PodPeer(namespace, pods)


def _read_port(own: Field) -> Port | None:
    fields = own.entries(("protocol", "port", "endPort"))
    protocol: Protocol | None = Protocol.TCP
    if "protocol" in fields:
        chosen = fields["protocol"].choice([*Protocol])
        protocol = Protocol(chosen) if chosen is not None else None
    if "port" not in fields:
        if "endPort" in fields:
            fields["endPort"].mistake("there is no port that it could be the end of", "add port")
        return NumberedPorts(protocol) if protocol is not None else None
    if fields["port"].is_text:
        name = fields["port"].text()
        if "endPort" in fields:
            fields["endPort"].mistake("port is a name", "a range needs a number as port")
        if name is None:
            return None
        wrong = check_port_name(name)
        if wrong:
            remedy = "leave the quotes out" if name.isdigit() else "name a port as it is declared"
            fields["port"].mistake(f"the port name {shown(name)} {wrong}", remedy)
        return NamedPort(name, protocol) if protocol is not None else None
    first = fields["port"].whole_number(1, MAX_PORT)
    last = first
    if "endPort" in fields:
        last = fields["endPort"].whole_number(1, MAX_PORT)
    if first is None or last is None or protocol is None:
        return None
    if last < first:
        fields["endPort"].mistake(f"{last} is less than port {first}", "exchange the two")
    return NumberedPorts(protocol, first, last)
