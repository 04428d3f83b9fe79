"""Reading label selectors (meta/v1 LabelSelector) and blocks of addresses."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

from slim.plugins.policy.networkpolicy.mistakes import shown
from slim.plugins.policy.networkpolicy.model import BlockPeer, Operator, Requirement, Selector
from slim.plugins.policy.networkpolicy.names import check_label_key, check_label_value

if TYPE_CHECKING:
    from slim.broker.plugin_api import Network
    from slim.plugins.policy.networkpolicy.fields import Field

_KEY_REMEDY = "write it as app, or as example.com/app"


def read_selector(own: Field) -> Selector:
    fields = own.entries(("matchLabels", "matchExpressions"))
    requirements: list[Requirement] = []
    if "matchLabels" in fields:
        requirements += [
            Requirement(key, Operator.IN, frozenset([value]))
            for key, value in read_labels(fields["matchLabels"]).items()
        ]
    if "matchExpressions" in fields:
        for each in fields["matchExpressions"].items():
            requirement = _read_requirement(each)
            if requirement is not None:
                requirements.append(requirement)
    return Selector(tuple(requirements))


def read_labels(own: Field) -> dict[str, str]:
    """Labels as a document gives them, to things or to matchLabels."""
    found: dict[str, str] = {}
    if isinstance(own.node.value, dict):
        for key, node in own.node.value.items():
            # As text it would be ""; that must be meant, not forgotten.
            if node.value is None:
                own.mistake(f"the label {shown(key)} has no value", 'write "" if it is empty')
    for key, each in own.children().items():
        wrong = check_label_key(key)
        if wrong:
            each.mistake(f"the label key {shown(key)} {wrong}", _KEY_REMEDY)
        value = each.text()
        if value is None:
            continue
        wrong = check_label_value(value)
        if wrong:
            each.mistake(f"the label value {shown(value)} {wrong}", "choose another value")
        found[key] = value
    return found


def _read_requirement(own: Field) -> Requirement | None:
    fields = own.entries(("key", "operator", "values"))
    for name in ("key", "operator"):
        if name not in fields:
            own.missing(name, "write key, operator, and for In and NotIn values")
    key = fields["key"].text() if "key" in fields else None
    operator = fields["operator"].choice([*Operator]) if "operator" in fields else None
    if key is not None:
        wrong = check_label_key(key)
        if wrong:
            fields["key"].mistake(f"the label key {shown(key)} {wrong}", _KEY_REMEDY)
    listed = fields["values"].items() if "values" in fields else []
    values = [value for value in (each.text() for each in listed) if value is not None]
    for each, value in zip(listed, values, strict=False):
        wrong = check_label_value(value)
        if wrong:
            each.mistake(f"the label value {shown(value)} {wrong}", "choose another value")
    if key is None or operator is None:
        return None
    wants = operator in (Operator.IN, Operator.NOT_IN)
    if wants and not listed:
        if "values" in fields:
            fields["values"].mistake(f"{operator} needs at least one value", "name it")
        else:
            own.missing("values", f"{operator} needs at least one value")
    if not wants and listed:
        fields["values"].mistake(
            f"{operator} takes no values", "leave them out, or did you mean In or NotIn?"
        )
    return Requirement(key, Operator(operator), frozenset(values) if wants else frozenset())


def read_block(own: Field) -> BlockPeer | None:
    fields = own.entries(("cidr", "except"))
    if "cidr" not in fields:
        own.missing("cidr", "write it as 10.77.0.0/16 or fd00:77::/64")
        return None
    network = read_network(fields["cidr"])
    excluded: list[Network] = []
    if "except" in fields:
        for each in fields["except"].items():
            inner = read_network(each)
            if inner is None or network is None:
                continue
            if not _is_strictly_inside(inner, network):
                each.mistake(f"{inner} is not a part of {network}", "except blocks lie inside cidr")
            excluded.append(inner)
    return None if network is None else BlockPeer(network, tuple(excluded))


def read_network(own: Field) -> Network | None:
    """A block of addresses; with host bits set it means the block around, as Kubernetes has it."""
    text = own.text()
    if text is None:
        return None
    try:
        if "/" not in text or "%" in text:
            raise ValueError("the prefix length is missing" if "/" not in text else "has a zone")
        address, _, length = text.partition("/")
        if not (length.isascii() and length.isdigit()):
            # ipaddress would take 10.0.0.0/255.0.0.0, too.
            raise ValueError("the prefix length is no number")
        network = ipaddress.ip_network(text, strict=False)
    except ValueError as error:
        own.mistake(f"{shown(text)} is no block of addresses: {error}", "write 10.77.0.0/16")
        return None
    if isinstance(network, ipaddress.IPv6Network) and network.network_address.ipv4_mapped:
        own.mistake(f"{shown(text)} is an IPv4 address in IPv6 form", "write it as IPv4")
        return None
    if str(network.network_address) != str(ipaddress.ip_address(address)):
        own.warn(f"{text} has bits behind its prefix", f"write {network}, which it means")
    return network


def _is_strictly_inside(inner: Network, outer: Network) -> bool:
    return (
        inner.version == outer.version
        and inner.prefixlen > outer.prefixlen
        and inner.network_address in outer
    )
