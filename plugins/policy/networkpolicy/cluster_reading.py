"""From a document to a ClusterNetworkPolicy (policy.networking.k8s.io/v1alpha2).

Source of the rules: the custom resource definition of sigs.k8s.io/network-policy-api. A peer of a
kind that is not known here fails closed, as that API asks: an Accept rule with one matches nothing,
a Deny or Pass rule with one denies everything.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from slim.broker.plugin_api import Direction
from slim.plugins.policy.networkpolicy.mistakes import shown
from slim.plugins.policy.networkpolicy.model import (
    EVERYTHING,
    Action,
    AnyPeer,
    AnyPort,
    BlockPeer,
    ClusterPolicy,
    NamedPort,
    NumberedPorts,
    PodPeer,
    Protocol,
    Tier,
    TierRule,
)
from slim.plugins.policy.networkpolicy.names import check_port_name
from slim.plugins.policy.networkpolicy.reading import MAX_PORT, document_fields, read_metadata
from slim.plugins.policy.networkpolicy.selectors import read_network, read_selector

if TYPE_CHECKING:
    from slim.plugins.policy.networkpolicy.fields import Field, Report
    from slim.plugins.policy.networkpolicy.model import Peer, Port

MAX_ITEMS = 25
MAX_PRIORITY = 1000
MAX_RULE_NAME = 100

_PEER_KEYS = {Direction.INGRESS: "from", Direction.EGRESS: "to"}
_PEERS = {
    Direction.INGRESS: ("namespaces", "pods"),
    Direction.EGRESS: ("namespaces", "pods", "networks"),
}
_WITHOUT_NAMED_PORTS = {"networks", "nodes", "domainNames"}
_PROTOCOLS = {"tcp": Protocol.TCP, "udp": Protocol.UDP, "sctp": Protocol.SCTP}


def read_cluster_policy(document: Field, report: Report) -> ClusterPolicy | None:
    fields = document_fields(document)
    metadata = read_metadata(fields, document, namespaced=False)
    if "spec" not in fields:
        document.missing("spec", "write tier, priority, subject and rules")
        return None
    own = fields["spec"]
    spec = own.entries(("tier", "priority", "subject", "ingress", "egress"))
    for name in ("tier", "priority", "subject"):
        if name not in spec:
            own.missing(name, "a ClusterNetworkPolicy has tier, priority and subject")
    tier = spec["tier"].choice([*Tier]) if "tier" in spec else None
    priority = spec["priority"].whole_number(0, MAX_PRIORITY) if "priority" in spec else None
    subject = _read_subject(spec["subject"]) if "subject" in spec else None
    rules = {
        direction: tuple(
            rule
            for rule in (
                _read_rule(each, direction) for each in spec[direction.value].items(most=MAX_ITEMS)
            )
            if rule is not None
        )
        for direction in Direction
        if direction.value in spec
    }
    if tier is None or priority is None or subject is None:
        return None
    return ClusterPolicy(
        name=metadata.name,
        tier=Tier(tier),
        priority=priority,
        subject=subject,
        ingress=rules.get(Direction.INGRESS, ()),
        egress=rules.get(Direction.EGRESS, ()),
        mode=metadata.mode,
        origin=report.origin,
    )


def _read_subject(own: Field) -> PodPeer | None:
    fields = own.entries(("namespaces", "pods"))
    if own.is_mapping and len(own.children()) != 1:
        own.mistake("must have either namespaces or pods", "`namespaces: {}` means everybody")
    return _read_members(fields) if len(fields) == 1 else None


def _read_members(fields: dict[str, Field]) -> PodPeer:
    if "namespaces" in fields:
        return PodPeer(read_selector(fields["namespaces"]))
    own = fields["pods"]
    pods = own.entries(("namespaceSelector", "podSelector"))
    if "podSelector" not in pods:
        own.missing("podSelector", "`podSelector: {}` means all of the namespaces")
    return PodPeer(
        read_selector(pods["namespaceSelector"]) if "namespaceSelector" in pods else EVERYTHING,
        read_selector(pods["podSelector"]) if "podSelector" in pods else EVERYTHING,
    )


def _read_rule(own: Field, direction: Direction) -> TierRule | None:
    key = _PEER_KEYS[direction]
    fields = own.entries(("name", "action", key, "protocols"))
    name = fields["name"].text() or "" if "name" in fields else ""
    if len(name) > MAX_RULE_NAME:
        fields["name"].mistake(f"has more than {MAX_RULE_NAME} characters", "shorten it")
    if "action" not in fields:
        own.missing("action", f"write one of {', '.join(Action)}")
    if key not in fields:
        own.missing(key, "`- namespaces: {}` means everybody")
    action = fields["action"].choice([*Action]) if "action" in fields else None
    ports: list[Port] = [AnyPort()]
    if "protocols" in fields:
        listed = fields["protocols"].items(least=1, most=MAX_ITEMS)
        ports = [port for each in listed for port in _read_protocol(each)]
    kinds: set[str] = set()
    peers: list[Peer] = []
    for each in fields[key].items(least=1, most=MAX_ITEMS) if key in fields else []:
        kinds |= each.children().keys()
        peers += _read_peer(each, direction)
    if kinds & _WITHOUT_NAMED_PORTS and any(isinstance(port, NamedPort) for port in ports):
        fields["protocols"].mistake(
            f"destinationNamedPort with {', '.join(sorted(kinds & _WITHOUT_NAMED_PORTS))}",
            "only workloads have names for ports: make two rules of it",
        )
    if action is None:
        return None
    unknown = kinds.difference(_PEERS[direction])
    if unknown:
        return _fail_closed(fields[key], Action(action), unknown, name)
    return TierRule(Action(action), tuple(peers), tuple(ports), name)


def _fail_closed(own: Field, action: Action, unknown: set[str], name: str) -> TierRule:
    kinds = ", ".join(sorted(shown(kind) for kind in unknown))
    if action is Action.ACCEPT:
        own.warn(
            f"peers of a kind not known here ({kinds}): this rule accepts nothing",
            "use namespaces, pods or (for egress) networks",
        )
        return TierRule(action, (), (AnyPort(),), name)
    own.warn(
        f"peers of a kind not known here ({kinds}): this rule denies everything",
        "use namespaces, pods or (for egress) networks",
    )
    return TierRule(Action.DENY, (AnyPeer(),), (AnyPort(),), name)


def _read_peer(own: Field, direction: Direction) -> list[Peer]:
    """What one item stands for; nothing if its kind is not known."""
    fields = own.children()
    if len(fields) != 1:
        if own.is_mapping:
            own.mistake(
                f"must have exactly one of {', '.join(_PEERS[direction])}",
                "make an item of each: any of them will do",
            )
        return []
    (kind,) = fields
    if kind not in _PEERS[direction]:
        return []
    if kind != "networks":
        return [_read_members(fields)]
    networks = [read_network(each) for each in fields[kind].items(least=1, most=MAX_ITEMS)]
    if len(networks) != len(set(networks)):
        fields[kind].mistake("has an item twice", "take one of the two out")
    return [BlockPeer(network) for network in networks if network is not None]


def _read_protocol(own: Field) -> list[Port]:
    fields = own.entries((*_PROTOCOLS, "destinationNamedPort"))
    if own.is_mapping and len(own.children()) != 1:
        own.mistake(
            "must have exactly one of tcp, udp, sctp, destinationNamedPort",
            "make an item of each: any of them will do",
        )
    if len(fields) != 1:
        return []
    ((kind, field),) = fields.items()
    if kind == "destinationNamedPort":
        name = field.text()
        if name is None:
            return []
        wrong = check_port_name(name)
        if wrong:
            field.mistake(f"the port name {shown(name)} {wrong}", "name a port as it is declared")
        return [NamedPort(name, None)]
    inner = field.entries(("destinationPort",))
    if "destinationPort" not in inner:
        field.missing("destinationPort", "write number, or range with start and end")
        return []
    return _read_destination(inner["destinationPort"], _PROTOCOLS[kind])


def _read_destination(own: Field, protocol: Protocol) -> list[Port]:
    fields = own.entries(("number", "range"))
    if own.is_mapping and len(own.children()) != 1:
        own.mistake("must have either number or range", "write `number: 80`")
    if len(fields) != 1:
        return []
    if "number" in fields:
        number = fields["number"].whole_number(1, MAX_PORT)
        return [] if number is None else [NumberedPorts(protocol, number, number)]
    ends = fields["range"].entries(("start", "end"))
    for name in ("start", "end"):
        if name not in ends:
            fields["range"].missing(name, "a range has start and end")
    if len(ends) != 2:
        return []
    first, last = (ends[name].whole_number(1, MAX_PORT) for name in ("start", "end"))
    if first is None or last is None:
        return []
    if first >= last:
        fields["range"].mistake(f"start {first} is not less than end {last}", "exchange the two")
    return [NumberedPorts(protocol, first, last)]
