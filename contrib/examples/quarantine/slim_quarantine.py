"""A workload with the label `quarantine` connects to nobody, and nobody to it.

    [plugins.quarantine]
    label = "quarantine"

A complete policy plugin: docs/hooks.md describes the hooks. Give a workload the label, reload, and
its live connections are cut, too.
"""

from __future__ import annotations

import msgspec

from slim.broker.plugin_api import (
    Direction,
    FlowRequest,
    Identity,
    PluginSettings,
    Verdict,
    hookimpl,
)

NAME = "quarantine"


class Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The table `[plugins.quarantine]`."""

    label: str = "quarantine"


class Plugin:
    """One instance for each configuration."""

    def __init__(self) -> None:
        self._label = Table().label

    @hookimpl
    def slim_configure(self, settings: PluginSettings) -> None:
        self._label = settings.read(NAME, Table).label
        if not self._label:
            raise settings.mistake(NAME, "the label is empty", key="label", hint="leave it out")

    @hookimpl
    def slim_decide(self, request: FlowRequest) -> Verdict | None:
        if self._label in request.source.labels:
            return Verdict(allow=False, rule=f"{NAME}:source")
        if request.destination is not None and self._label in request.destination.labels:
            return Verdict(allow=False, rule=f"{NAME}:destination")
        return None

    @hookimpl
    def slim_isolates(self, workload: Identity, direction: Direction) -> bool:
        # Without this the overlay would be a way round.
        return self._label in workload.labels
