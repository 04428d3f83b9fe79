"""The table [shaping] as it is written; the counterpart is config_shaping.py, which checks it."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from msgspec import Meta, field

from slim.broker.config_keys import Table

# Which workloads a table is for.
Workloads: TypeAlias = Annotated[
    tuple[str, ...],
    Meta(max_length=256, description="Names of workloads; none: all.", examples=[["backup-1"]]),
]
Namespaces: TypeAlias = Annotated[
    tuple[str, ...],
    Meta(
        max_length=256,
        description="Policy namespaces of workloads; none: all.",
        examples=[["ops"]],
    ),
]
Labels: TypeAlias = Annotated[
    dict[str, str],
    Meta(
        max_length=64,
        description="Labels that the workload must have, all of them.",
        examples=[{"app": "backup"}],
    ),
]


class ShapingRuleTable(Table, frozen=True, kw_only=True):
    """Limits for connections of this host's workloads; one table for each rule. Where several rules
    select a connection, the smallest number of each limit holds. Units are part of every value."""

    name: Annotated[
        str,
        Meta(
            description="What logs and messages call the rule: up to 63 of a-z, 0-9 and '-'.",
            examples=["backups"],
        ),
    ]
    workloads: Workloads = ()
    namespaces: Namespaces = ()
    labels: Labels = field(default_factory=dict)
    networks: Annotated[
        tuple[str, ...],
        Meta(
            max_length=256,
            description="Where the other end's overlay address is, as address/length; none: "
            "anywhere.",
            examples=[["10.77.2.0/24"]],
        ),
    ] = ()
    ports: Annotated[
        tuple[str, ...],
        Meta(
            max_length=256,
            description="Ports of the listening end, whichever it is, as a port or first-last; "
            "none: all.",
            examples=[["5432", "8000-8999"]],
        ),
    ] = ()
    send: Annotated[
        str | None,
        Meta(
            description=(
                "What each connection sends at most, with one of the units bit, kbit, mbit, gbit "
                "(per second, payload)."
            ),
            examples=["200mbit"],
        ),
    ] = None
    receive: Annotated[
        str | None,
        Meta(
            description=(
                "What each connection receives at most; the slimd of the other end enforces it."
            ),
            examples=["200mbit"],
        ),
    ] = None
    dscp: Annotated[
        str | None,
        Meta(
            description=(
                'The DSCP of what is sent: a name ("af21", "ef", "cs1", "le") or a number of 0 to '
                "63, as a string."
            ),
            examples=["af21"],
        ),
    ] = None
    priority: Annotated[
        int | None,
        Meta(description="SO_PRIORITY of what is sent, 0 to 6.", examples=[2]),
    ] = None
    quota: Annotated[
        str | None,
        Meta(
            description=(
                "Bytes in both directions together after which a connection is ended, with one of "
                "the units B, kB, MB, GB, TB, KiB, MiB, GiB, TiB."
            ),
            examples=["5GiB"],
        ),
    ] = None
    lifetime: Annotated[
        str | None,
        Meta(
            description="Age at which a connection is ended, with one of the units s, m, h, d.",
            examples=["8h"],
        ),
    ] = None
    idle: Annotated[
        str | None,
        Meta(
            description=(
                "Time without a byte of payload after which a connection is ended, with one of the "
                "units s, m, h, d."
            ),
            examples=["10m"],
        ),
    ] = None


class ShapingContainerTable(Table, frozen=True, kw_only=True):
    """A limit for all accelerated connections of a workload together; one table for each. Where
    several select a workload, the lowest holds."""

    name: Annotated[
        str,
        Meta(
            description="What logs and messages call it: up to 63 of a-z, 0-9 and '-'.",
            examples=["batch"],
        ),
    ]
    workloads: Workloads = ()
    namespaces: Namespaces = ()
    labels: Labels = field(default_factory=dict)
    send: Annotated[
        str,
        Meta(
            description=(
                "What the workload sends at most, headers included, with one of the units bit, "
                "kbit, mbit, gbit (per second)."
            ),
            examples=["1gbit"],
        ),
    ]


class ShapingTable(Table, frozen=True):
    """How much connections may send, how they are marked, when they are ended. The kernel enforces
    it, and programs cannot undo it."""

    rule: Annotated[tuple[ShapingRuleTable, ...], Meta(max_length=1024)] = ()
    container: Annotated[tuple[ShapingContainerTable, ...], Meta(max_length=1024)] = ()
