"""Ordered allow and deny rules: the small policy plugin.

    [plugins.rules]
    default = "allow"               # or "deny"
    [[plugins.rules.rules]]
    name = "web-to-db"
    action = "allow"                # or "deny"
    direction = "both"              # ingress, egress or both (default)
    source = { app = "web" }        # labels that must all be there
    destination = { app = "db" }
    source_namespace = "shop"       # also destination_namespace
    destination_network = "10.77.2.0/24"    # also source_network
    ports = [5432, "6000-6010"]
    encrypt = true                  # allowed only if encrypted on the wire

The first rule that matches decides; without one, `default` does. There are two lists, the rules
for egress (egress and both) and those for ingress (ingress and both), and a flow needs both.

Who knows what: the source's slimd decides egress, often before it knows whose the destination is.
A rule that asks for destination labels or a destination namespace is then open. An open allow
allows for the time being, an open deny is passed over, so that nothing is refused which the
whole list would allow; and the destination's slimd, which knows both ends, decides the egress
list too wherever it was left open. So the two together allow exactly what the lists allow, if
both hosts have the same rules: rules that ask who the destination is belong on every host.

A destination that nobody brokers (PLAIN_PEER) has no labels and no namespace: rules that ask for
any do not match it, and others, or the default, decide. A workload that open rules could keep
something from counts as isolated, so taking it for a plain peer gets nobody round them.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from typing import Annotated, Literal, TypeAlias

import msgspec

from slim.broker.plugin_api import (
    Address,
    ConfigError,
    Direction,
    FlowRequest,
    Identity,
    Network,
    PluginSettings,
    PortRange,
    Verdict,
    hookimpl,
)

NAME = "rules"
Action: TypeAlias = Literal["allow", "deny"]
Name: TypeAlias = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
Namespace: TypeAlias = Annotated[str, msgspec.Meta(min_length=1)]


class RuleTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One `[[plugins.rules.rules]]` table as written."""

    name: Name
    action: Action
    direction: Literal["ingress", "egress", "both"] = "both"
    source: dict[str, str] = {}
    destination: dict[str, str] = {}
    source_namespace: Namespace | None = None
    destination_namespace: Namespace | None = None
    source_network: str | None = None
    destination_network: str | None = None
    ports: list[int | str] = []
    encrypt: bool = False


class RulesTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The table `[plugins.rules]`."""

    default: Action = "allow"
    rules: list[RuleTable] = []


@dataclass(frozen=True, slots=True, kw_only=True)
class Selector:
    """One end of a rule."""

    labels: dict[str, str] = field(default_factory=dict)
    namespace: str | None = None
    network: Network | None = None

    def asks_identity(self) -> bool:
        return bool(self.labels) or self.namespace is not None

    def takes_all(self) -> bool:
        return not self.asks_identity() and self.network is None

    def fits_identity(self, identity: Identity) -> bool:
        return (self.namespace is None or self.namespace == identity.namespace) and all(
            identity.labels.get(key) == value for key, value in self.labels.items()
        )

    def fits_address(self, address: Address) -> bool:
        return self.network is None or address in self.network


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    name: str
    allow: bool
    directions: frozenset[Direction]
    source: Selector
    destination: Selector
    ports: tuple[PortRange, ...] = ()
    encrypt: bool = False

    def matches(self, request: FlowRequest, destination: Identity | None) -> bool | None:
        """True, False, or None: open until the destination's identity is known."""
        if not (
            self.source.fits_identity(request.source)
            and self.source.fits_address(request.source_address)
            and self.destination.fits_address(request.destination_address)
            and (not self.ports or any(request.port in ports for ports in self.ports))
        ):
            return False
        if not self.destination.asks_identity():
            return True
        return None if destination is None else self.destination.fits_identity(destination)

    def takes_all(self, own: Selector) -> bool:
        """Whether it matches all flows of a workload whose identity `own`, one end, fits."""
        other = self.destination if own is self.source else self.source
        return own.network is None and other.takes_all() and not self.ports


@dataclass(frozen=True, slots=True)
class RuleSet:
    """All rules, in order."""

    rules: tuple[Rule, ...] = ()
    default_allow: bool = True

    def decide(self, request: FlowRequest) -> Verdict | None:
        """The verdict in the request's direction; None when there is nothing to go by."""
        if not self.rules and self.default_allow:
            return None
        if request.direction is Direction.EGRESS:
            return self._walk(request, Direction.EGRESS, request.destination)[0]
        _, left_open = self._walk(request, Direction.EGRESS, None)
        ingress, _ = self._walk(request, Direction.INGRESS, request.destination)
        if left_open:
            egress, _ = self._walk(request, Direction.EGRESS, request.destination)
            if not egress.allow or (egress.encrypt and ingress.allow):
                return egress
        return ingress

    def isolates(self, workload: Identity, direction: Direction) -> bool:
        """Whether `decide` can refuse a flow of the workload's in that direction."""
        if direction is Direction.EGRESS:
            return self._can_refuse(workload, Direction.EGRESS, at_source=True)
        return self._can_refuse(workload, Direction.INGRESS, at_source=False) or (
            any(rule.destination.asks_identity() for rule in self._list(Direction.EGRESS))
            and self._can_refuse(workload, Direction.EGRESS, at_source=False)
        )

    def _list(self, direction: Direction) -> list[Rule]:
        return [rule for rule in self.rules if direction in rule.directions]

    def _walk(
        self, request: FlowRequest, direction: Direction, destination: Identity | None
    ) -> tuple[Verdict, bool]:
        """The verdict of one list, and whether a rule on the way to it was open."""
        left_open = False
        for rule in self._list(direction):
            match = rule.matches(request, destination)
            left_open = left_open or match is None
            if match or (match is None and rule.allow):
                # An open rule may not be the one that decides: what it demands is not known yet.
                encrypt = rule.encrypt and match is True
                name = f"{NAME}:{rule.name}"
                return Verdict(rule.allow, name, encrypt=encrypt), left_open
        return Verdict(self.default_allow, f"{NAME}:default"), left_open

    def _can_refuse(self, workload: Identity, direction: Direction, *, at_source: bool) -> bool:
        """Whether one list can refuse a flow that has the workload at that end."""
        for rule in self._list(direction):
            own = rule.source if at_source else rule.destination
            if not own.fits_identity(workload):
                continue
            if not rule.allow or rule.encrypt:
                return True
            if rule.takes_all(own):
                return False
        return not self.default_allow


class Plugin:
    """The hooks; has the rules of the last slim_configure."""

    def __init__(self) -> None:
        self._rules = RuleSet()

    @hookimpl
    def slim_configure(self, settings: PluginSettings) -> None:
        self._rules = read_rules(settings)

    @hookimpl
    def slim_decide(self, request: FlowRequest) -> Verdict | None:
        return self._rules.decide(request)

    @hookimpl
    def slim_isolates(self, workload: Identity, direction: Direction) -> bool:
        return self._rules.isolates(workload, direction)


def read_rules(settings: PluginSettings) -> RuleSet:
    """The rules of a configuration; ConfigError names file, table, key and remedy."""
    table = settings.read(NAME, RulesTable)
    names: set[str] = set()
    for written in table.rules:
        if written.name in names or not written.name.isprintable():
            raise settings.mistake(
                NAME,
                f"{written.name!r} is used twice, or not printable",
                key="rules: name",
                hint="give every rule a name of its own; verdicts are reported by it",
            )
        names.add(written.name)
    rules = tuple(_read_rule(written, settings) for written in table.rules)
    return RuleSet(rules, table.default == "allow")


def _read_rule(written: RuleTable, settings: PluginSettings) -> Rule:
    def mistake(key: str, message: str, hint: str) -> ConfigError:
        return settings.mistake(NAME, message, key=f"rule {written.name!r}: {key}", hint=hint)

    def network(key: str, text: str | None) -> Network | None:
        try:
            return None if text is None else ipaddress.ip_network(text)
        except ValueError as error:
            raise mistake(key, str(error), 'write it as "10.77.2.0/24"') from None

    def ports(port: int | str) -> PortRange:
        try:
            return PortRange.parse(str(port) if "-" in str(port) else f"{port}-{port}")
        except ValueError:
            hint = 'write 5432, or a range as "6000-6010"'
            raise mistake("ports", f"{port!r} is no port", hint) from None

    if written.encrypt and written.action == "deny":
        raise mistake("encrypt", "what is denied needs no encryption", "leave encrypt out")
    both = written.direction == "both"
    return Rule(
        name=written.name,
        allow=written.action == "allow",
        directions=frozenset(Direction if both else [Direction(written.direction)]),
        source=Selector(
            labels=written.source,
            namespace=written.source_namespace,
            network=network("source_network", written.source_network),
        ),
        destination=Selector(
            labels=written.destination,
            namespace=written.destination_namespace,
            network=network("destination_network", written.destination_network),
        ),
        ports=tuple(ports(port) for port in written.ports),
        encrypt=written.encrypt,
    )
