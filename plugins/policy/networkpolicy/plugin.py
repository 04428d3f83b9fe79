"""The hooks: verdicts by NetworkPolicy and ClusterNetworkPolicy documents.

    [plugins.networkpolicy]
    path = "/etc/slim/policies"     # a file, or a directory of *.yaml, *.yml and *.json

All documents are in force, or none: with one mistake in them the configuration is refused. What a
policy in audit mode would deny is allowed, and said in the verdict.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec

from slim.broker.plugin_api import (
    ConfigError,
    Direction,
    FlowRequest,
    Identity,
    PluginSettings,
    Verdict,
    hookimpl,
)
from slim.plugins.policy.networkpolicy.compiler import NOTHING, Compiled, compile_resources
from slim.plugins.policy.networkpolicy.engine import Outcome
from slim.plugins.policy.networkpolicy.identities import Members
from slim.plugins.policy.networkpolicy.model import Protocol
from slim.plugins.policy.networkpolicy.table import Flow
from slim.plugins.policy.networkpolicy.wording import NAME

if TYPE_CHECKING:
    from slim.plugins.policy.networkpolicy.engine import Decision, Engine
    from slim.plugins.policy.networkpolicy.loading import Loaded
    from slim.plugins.policy.networkpolicy.mistakes import Mistake

log = logging.getLogger(__name__)

MAX_TOLD = 20


class NetworkPolicyTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The table `[plugins.networkpolicy]`."""

    path: Annotated[str, msgspec.Meta(min_length=1)] | None = None
    """File or directory, absolute; none: the plugin has no opinion about anything."""


class Known:
    """What the last instance read and compiled, by content: a reload does what has changed."""

    def __init__(self) -> None:
        self.loaded: Loaded | None = None
        self.compiled = NOTHING


_known = Known()
"""Values made of files' contents only, so instances may share them."""


class Judge:
    """One engine, and the workloads as it sees them."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._members = Members(engine)

    def decide(self, request: FlowRequest) -> Decision | None:
        source = self._members.of(request.source)
        known = request.destination
        destination = self._members.of(known) if known is not None else None
        if request.direction is Direction.EGRESS:
            subject, peer, address = source, destination, request.destination_address
        else:
            subject, peer, address = destination, source, request.source_address
        if subject is None:
            # Policies are about workloads.
            return None
        flow = Flow(subject, peer, address, Protocol.TCP, request.port, destination)
        if known is not None or request.direction is Direction.INGRESS:
            return self._engine.decide(request.direction, flow)
        return self._engine.decide_open(request.direction, flow)

    def isolates(self, workload: Identity, direction: Direction) -> bool:
        member = self._members.of(workload)
        return member is not None and self._engine.isolates(direction, member)


class Plugin:
    """The hooks; has the policies of its slim_configure."""

    def __init__(self) -> None:
        self._use(NOTHING)

    @classmethod
    def of(cls, compiled: Compiled) -> Plugin:
        """One that has these policies, whatever any configuration says."""
        plugin = cls()
        plugin._use(compiled)
        return plugin

    def _use(self, compiled: Compiled) -> None:
        self._has_policies = compiled.audited is not None or not compiled.enforced.is_empty
        self._enforced = Judge(compiled.enforced)
        self._audited = Judge(compiled.audited) if compiled.audited is not None else None

    @hookimpl
    def slim_configure(self, settings: PluginSettings) -> None:
        table = settings.read(NAME, NetworkPolicyTable)
        self._use(NOTHING if table.path is None else self._compile(Path(table.path), settings))

    def _compile(self, path: Path, settings: PluginSettings) -> Compiled:
        # Reading YAML takes 30 ms to import, and most hosts have no such policy.
        from slim.plugins.policy.networkpolicy.loading import load

        if not path.is_absolute():
            raise settings.mistake(
                NAME, f"{str(path)!r} is relative", key="path", hint="write it from / on"
            )
        loaded = load(path, _known.loaded)
        _known.loaded = loaded
        if loaded.mistakes:
            raise _refusal(loaded.mistakes, path)
        for warning in loaded.warnings:
            log.warning("%s (%s)", warning, warning.remedy)
        _known.compiled = compile_resources(loaded.resources, _known.compiled)
        log.info(
            "%s: %d policies and namespaces, %d parts compiled anew",
            path,
            len(loaded.resources),
            _known.compiled.units.compiled,
        )
        return _known.compiled

    @hookimpl
    def slim_decide(self, request: FlowRequest) -> Verdict | None:
        if not self._has_policies or request.source_address == request.destination_address:
            # Nothing keeps a workload from itself.
            return None
        decision = self._enforced.decide(request)
        if decision is not None and decision.outcome is Outcome.DENY:
            return Verdict(allow=False, rule=decision.rule)
        is_open = decision is not None and decision.outcome is Outcome.OPEN
        if self._audited is not None:
            watched = self._audited.decide(request)
            if watched is not None and watched.outcome is Outcome.DENY:
                return Verdict(allow=True, rule=watched.rule, audit=True, provisional=is_open)
        if decision is None:
            return None
        return Verdict(allow=True, rule=decision.rule, provisional=is_open)

    @hookimpl
    def slim_isolates(self, workload: Identity, direction: Direction) -> bool:
        return self._enforced.isolates(workload, direction)


def _refusal(mistakes: list[Mistake], path: Path) -> ConfigError:
    errors = [ConfigError(str(each), hint=each.remedy) for each in mistakes[:MAX_TOLD]]
    if len(mistakes) > MAX_TOLD:
        errors.append(
            ConfigError(
                f"{path}: {len(mistakes) - MAX_TOLD} more mistakes",
                hint=f"slimctl policy lint {path} shows all of them",
            )
        )
    first = errors[0]
    return ConfigError(first.message, hint=first.hint, more=tuple(errors[1:]))
