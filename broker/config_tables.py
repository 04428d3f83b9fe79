"""The configuration file as it is written: one type per table, raw values, and what each key means.

Counterpart of config.py, which checks these values and turns them into addresses, paths and
numbers. Descriptions are printed into contrib/examples/slimd.toml (config_example.py) and as
the remedy when a value is wrong (config_file.py): they speak to the operator.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from msgspec import Meta, field

from slim.broker.config_keys import Table
from slim.broker.config_shaping_tables import ShapingTable

Guard: TypeAlias = Literal["portable", "kernel"]
Unverified: TypeAlias = Literal["overlay", "deny"]
DenyErrno: TypeAlias = Literal["EACCES", "ECONNREFUSED", "EHOSTUNREACH", "EPERM", "ETIMEDOUT"]
LogLevel: TypeAlias = Literal["debug", "info", "warning", "error"]
LogFormat: TypeAlias = Literal["auto", "human", "json"]


class HostTable(Table, frozen=True, kw_only=True):
    """This host as the underlay sees it."""

    name: Annotated[
        str | None,
        Meta(
            description=(
                "The host's name in its certificate, in logs and for its peers: up to 63 of a-z, "
                "0-9, '.' and '-'. Default: the machine's own name up to its first dot."
            ),
            examples=["node-1"],
        ),
    ] = None
    addresses: Annotated[
        tuple[str, ...],
        Meta(
            min_length=1,
            max_length=16,
            description=(
                "The IP addresses of this host that other hosts reach it at, IPv4 or IPv6, without "
                "prefix length. Accelerated connections come from them and go to them."
            ),
            examples=[["192.0.2.11"]],
        ),
    ]
    ports: Annotated[
        str,
        Meta(
            description=(
                "TCP ports for the listeners of workloads, first-last. They must lie outside "
                "net.ipv4.ip_local_port_range, and the firewall must let the other hosts reach "
                "them."
            ),
        ),
    ] = "20000-29999"


class OverlayTable(Table, frozen=True, kw_only=True):
    """An overlay whose connections Slim accelerates; one table for each."""

    name: Annotated[
        str,
        Meta(
            description=(
                "What slim-run --overlay and slimctl call it: up to 63 of a-z, 0-9 and '-'."
            ),
            examples=["blue"],
        ),
    ]
    networks: Annotated[
        tuple[str, ...],
        Meta(
            min_length=1,
            max_length=256,
            description=(
                "The networks that the containers of all hosts have their addresses from, as "
                "address/length. They may not overlap, nor hold an address of this host."
            ),
            examples=[["10.77.0.0/16", "fd77::/48"]],
        ),
    ]
    unverified: Annotated[
        Unverified | None,
        Meta(
            description=(
                'Where connections go for which no slimd answers: "overlay", over the overlay as '
                'if Slim were not there, or "deny". Default: the overlay, unless a policy isolates '
                "either end, because nobody enforces the policy there."
            ),
            examples=["deny"],
        ),
    ] = None


class PeersTable(Table, frozen=True, kw_only=True):
    """The control channel to the slimds of other hosts. Without this table there is none, and only
    workloads of this host reach each other fast. `slimctl pki` makes the files; relative paths
    start at the directory of this file."""

    listen: Annotated[
        str,
        Meta(
            description=(
                "Where the other slimds connect to, address:port or [address]:port: one of "
                "host.addresses, or 0.0.0.0 or [::] for all; a port outside host.ports."
            ),
            examples=["192.0.2.11:7946"],
        ),
    ]
    certificate: Annotated[
        str,
        Meta(
            description="This host's certificate, PEM. It names the host and its overlay networks.",
            examples=["pki/host.crt"],
        ),
    ]
    key: Annotated[
        str,
        Meta(description="The certificate's private key, PEM.", examples=["pki/host.key"]),
    ]
    authority: Annotated[
        str,
        Meta(
            description="The certificate of the authority that signs for all hosts, PEM.",
            examples=["pki/authority.crt"],
        ),
    ]


class DiscoveryTable(Table, frozen=True):
    """How the host behind an overlay address is found."""

    order: Annotated[
        tuple[str, ...],
        Meta(
            min_length=1,
            max_length=16,
            description=(
                "Names of discovery backends in the order they are asked; the first answer is "
                "taken."
            ),
        ),
    ] = ("static", "rendezvous")
    rendezvous_port: Annotated[
        int,
        Meta(
            ge=1,
            le=65535,
            description=(
                "The UDP port on overlay addresses that slimds answer each other at, the same on "
                "all hosts."
            ),
        ),
    ] = 7947


class PolicyTable(Table, frozen=True):
    """What programs notice of policy; the rules themselves are a plugin's."""

    errno: Annotated[
        DenyErrno,
        Meta(
            description=(
                "What a denied connect fails with: EACCES (connect(2) documents it for local "
                "firewall rules), ECONNREFUSED, EHOSTUNREACH, EPERM or ETIMEDOUT."
            ),
        ),
    ] = "EACCES"


class LimitsTable(Table, frozen=True):
    """How long things may take, and how long they are remembered."""

    resolve_budget_ms: Annotated[
        int,
        Meta(
            ge=1,
            le=1000,
            description=(
                "The longest that a connect waits for the way to an unknown destination, 1 to 1000 "
                "milliseconds; after that it takes the overlay."
            ),
        ),
    ] = 20
    connect_budget_ms: Annotated[
        int,
        Meta(
            ge=10,
            le=60_000,
            description=(
                "The longest that a blocking connect waits for the handshake on the host's "
                "network, 10 to 60000 milliseconds; after that it takes the overlay."
            ),
        ),
    ] = 1000
    flow_lifetime_s: Annotated[
        int,
        Meta(
            ge=10,
            le=3600,
            description="How long a verdict and its way are remembered, 10 to 3600 seconds.",
        ),
    ] = 300
    gap_limit_s: Annotated[
        int,
        Meta(
            ge=0,
            le=86_400,
            description=(
                "How long trapped calls wait when slimd is stopped or does not come up, 0 to 86400 "
                "seconds; after that connections take the overlay, or fail in workloads that were "
                "started --fail-closed or that a policy isolates."
            ),
        ),
    ] = 30


class NamespaceTable(Table, frozen=True, kw_only=True):
    """A network namespace that members of the group may start commands in, and the workload that
    it is; one table for each."""

    netns: Annotated[
        str,
        Meta(
            description="The network namespace: a name from `ip netns list`, or an absolute path.",
            examples=["web"],
        ),
    ]
    workload: Annotated[
        str,
        Meta(description="The workload's name, for policy.", examples=["web-1"]),
    ]
    namespace: Annotated[
        str,
        Meta(description="The workload's policy namespace, not a network namespace."),
    ] = "default"
    labels: Annotated[
        dict[str, str],
        Meta(
            max_length=64,
            description="The workload's labels, for policy: strings.",
            examples=[{"app": "web", "tier": "front"}],
        ),
    ] = field(default_factory=dict)


class SlimRunTable(Table, frozen=True):
    """Who besides root may start commands with slim-run."""

    group: Annotated[
        str,
        Meta(description="Members of this group may, in the namespaces below and nowhere else."),
    ] = "slim"
    namespace: Annotated[tuple[NamespaceTable, ...], Meta(max_length=4096)] = ()


class PluginsTable(Table, frozen=True):
    """Plugins besides the built-in and the installed ones. A plugin's own settings go into a table
    [plugins.<name>] with the plugin's name."""

    load: Annotated[
        tuple[str, ...],
        Meta(max_length=64, description="Python modules to load as plugins, by their full names."),
    ] = ()
    block: Annotated[
        tuple[str, ...],
        Meta(max_length=64, description="Names of plugins that must not be loaded."),
    ] = ()


class LogTable(Table, frozen=True):
    """What slimd says, on its standard error."""

    level: Annotated[
        LogLevel,
        Meta(description="The least severe messages to print: debug, info, warning or error."),
    ] = "info"
    format: Annotated[
        LogFormat,
        Meta(
            description=(
                "human, json (an object per line), or auto: human on a terminal, else json."
            )
        ),
    ] = "auto"


class ConfigTables(Table, frozen=True, kw_only=True):
    """The whole file. The settings of plugins are split off before it is converted to this."""

    guard: Annotated[
        Guard,
        Meta(
            description=(
                "What stands between a container and the abuse of its host sockets. There is no "
                'default: the choice is yours to make. "portable": seccomp only, for programs that '
                'you trust; it is no security boundary. "kernel": BPF programs in the kernel, '
                "which confine host sockets whoever holds them; slimd does not start where they "
                "cannot run (slimctl doctor)."
            ),
            examples=["portable"],
        ),
    ]
    run_dir: Annotated[
        str,
        Meta(
            description=(
                "slimd's directory for its sockets: an absolute path of at most 90 bytes, because "
                "a socket's whole path has room for 107 (unix(7))."
            ),
        ),
    ] = "/run/slim"
    host: HostTable
    overlay: Annotated[tuple[OverlayTable, ...], Meta(min_length=1, max_length=64)]
    peers: PeersTable | None = None
    discovery: DiscoveryTable = DiscoveryTable()
    policy: PolicyTable = PolicyTable()
    limits: LimitsTable = LimitsTable()
    slim_run: SlimRunTable = SlimRunTable()
    plugins: PluginsTable = PluginsTable()
    shaping: ShapingTable = ShapingTable()
    log: LogTable = LogTable()
