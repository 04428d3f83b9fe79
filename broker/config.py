"""slimd's configuration: what the user wrote, as values; run-time state lives elsewhere.

`load_config` reads the file (config_file.py) and checks what its values mean. The two
`check_host_*` functions compare the values with the machine; slimd calls them when it starts.
"""

from __future__ import annotations

import errno
import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from slim.broker.config_file import ConfigFile, Place, PluginTables, quoted, read_config_file
from slim.broker.config_shaping import read_shaping
from slim.broker.config_values import (
    GROUP_NAME,
    HOST_NAME,
    MODULE_NAME,
    OVERLAY_NAME,
    PLUGIN_NAME,
    check_disjoint,
    check_name,
    check_names,
    check_text,
    check_unique,
    read_address,
    read_listen,
    read_netns,
    read_network,
    read_ports,
    read_readable,
    read_run_dir,
)
from slim.broker.endpoints import MAX_PORT, Address, Endpoint, Network, PortRange
from slim.broker.errors import ConfigError
from slim.broker.shaping_rules import ShapingRules

if TYPE_CHECKING:
    from slim.broker.config_tables import Guard, LogFormat, LogLevel, Unverified

LOCAL_PORTS = Path("/proc/sys/net/ipv4/ip_local_port_range")
"""The ports that the kernel gives to connecting sockets of both families (ip(7))."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostConfig:
    """This host as the underlay sees it."""

    name: str
    addresses: tuple[Address, ...]
    """1 to 16 of them, all different, none inside an overlay."""
    ports: PortRange
    """For host listeners."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OverlayConfig:
    """One overlay; its name is unique."""

    name: str
    networks: tuple[Network, ...]
    """At least one; no two networks of all overlays overlap."""
    unverified: Unverified | None
    """None: "overlay", unless policy isolates either end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PeersConfig:
    """The control channel; the files were readable when the configuration was loaded."""

    listen: Endpoint
    """One of the host's addresses or the unspecified one; the port is not among the host ports."""
    certificate: Path
    key: Path
    authority: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class DiscoveryConfig:
    order: tuple[str, ...]
    """Names of backends; whether they exist is known when plugins are loaded."""
    rendezvous_port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyConfig:
    errno: int
    """What a denied connect(2) fails with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitsConfig:
    resolve_budget_ms: int
    connect_budget_ms: int
    flow_lifetime_s: int
    gap_limit_s: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NamespaceConfig:
    """A network namespace that members of the group may start commands in."""

    netns: Path
    """Absolute; what is there is known when a command is started."""
    workload: str
    namespace: str
    labels: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class SlimRunConfig:
    group: str
    """Need not exist: then only root may start commands."""
    namespaces: tuple[NamespaceConfig, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginsConfig:
    load: tuple[str, ...]
    """Names of modules."""
    block: tuple[str, ...]
    """Names of plugins."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogConfig:
    level: LogLevel
    format: LogFormat


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerConfig:
    """The whole configuration."""

    path: Path
    """The file, absolute."""
    guard: Guard
    run_dir: Path
    host: HostConfig
    overlays: tuple[OverlayConfig, ...]
    peers: PeersConfig | None
    """None: no control channel, only workloads of this host reach each other fast."""
    discovery: DiscoveryConfig
    policy: PolicyConfig
    limits: LimitsConfig
    slim_run: SlimRunConfig
    plugins: PluginsConfig
    plugin_settings: PluginTables
    """The tables [plugins.<name>] by name; each plugin checks its own."""
    log: LogConfig
    shaping: ShapingRules = field(default_factory=ShapingRules)


def load_config(path: Path) -> BrokerConfig:
    """Read and check the file; ConfigError names the file, the table, the key and the remedy."""
    file = read_config_file(path)
    tables = file.tables
    host = _read_host(file)
    return BrokerConfig(
        path=file.path,
        guard=tables.guard,
        run_dir=read_run_dir(file.at("run_dir"), tables.run_dir),
        host=host,
        overlays=_read_overlays(file, host),
        peers=_read_peers(file, host),
        discovery=_read_discovery(file),
        policy=PolicyConfig(errno=getattr(errno, tables.policy.errno)),
        limits=LimitsConfig(
            resolve_budget_ms=tables.limits.resolve_budget_ms,
            connect_budget_ms=tables.limits.connect_budget_ms,
            flow_lifetime_s=tables.limits.flow_lifetime_s,
            gap_limit_s=tables.limits.gap_limit_s,
        ),
        slim_run=_read_slim_run(file),
        plugins=_read_plugins(file),
        plugin_settings=file.plugin_tables,
        log=LogConfig(level=tables.log.level, format=tables.log.format),
        shaping=read_shaping(file),
    )


def check_host_addresses(config: BrokerConfig) -> None:
    """ConfigError unless every host address is one of this network namespace's.

    Tried by binding a TCP socket to it. With net.ipv4.ip_nonlocal_bind (or the IPv6 one) set the
    kernel lets every address pass, and so does this.
    """
    for address in config.host.addresses:
        family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
        try:
            with socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as sock:
                sock.bind((str(address), 0))
        except OSError as error:
            # EAFNOSUPPORT: a kernel without IPv6.
            if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                raise
            raise ConfigError(
                f"{config.path}: [host] addresses: {address} is not assigned to any interface here",
                hint="write an address that `ip address` shows on this host, or assign it first",
            ) from None


def check_host_ports(config: BrokerConfig, local_ports: Path = LOCAL_PORTS) -> None:
    """ConfigError when the host ports overlap those that the kernel gives to connecting sockets.

    Such a socket could hold the port that a listener is to keep.
    """
    first, last = local_ports.read_text().split()
    kernel, ports = PortRange(int(first), int(last)), config.host.ports
    if not kernel.overlaps(ports):
        return
    below, above = (1024, ports.first - 1), (ports.last + 1, MAX_PORT)
    wider = max(below, above, key=lambda span: span[1] - span[0])
    change = f'sysctl -w net.ipv4.ip_local_port_range="{wider[0]} {wider[1]}"'
    raise ConfigError(
        f"{config.path}: [host] ports: {ports} overlaps net.ipv4.ip_local_port_range ({kernel}), "
        "the ports that the kernel gives to connecting sockets",
        hint="write other ports"
        + (f", or change the kernel's range: {change}" if wider[0] < wider[1] else ""),
    )


def _read_host(file: ConfigFile) -> HostConfig:
    table = file.tables.host
    place = file.at("host", "name")
    name = table.name
    if name is None:
        name = socket.gethostname().partition(".")[0].lower()
        if not HOST_NAME.fullmatch(name):
            raise place.mistake(f"is missing, and the machine's own ({quoted(name)}) will not do")
    check_name(place, name, HOST_NAME)
    place = file.at("host", "addresses")
    addresses = tuple(read_address(place, text) for text in table.addresses)
    check_unique(place, addresses)
    ports = read_ports(file.at("host", "ports"), table.ports)
    return HostConfig(name=name, addresses=addresses, ports=ports)


def _read_overlays(file: ConfigFile, host: HostConfig) -> tuple[OverlayConfig, ...]:
    overlays: list[OverlayConfig] = []
    networks: list[tuple[Place, str, Network]] = []
    for index, table in enumerate(file.tables.overlay):
        place = file.at("overlay", index, "name")
        check_name(place, table.name, OVERLAY_NAME)
        if table.name in [overlay.name for overlay in overlays]:
            raise place.mistake(f"{table.name!r} is the name of an earlier one", "take another")
        place = file.at("overlay", index, "networks")
        own = tuple(read_network(place, text, host.addresses) for text in table.networks)
        networks += [(place, table.name, network) for network in own]
        overlays.append(OverlayConfig(name=table.name, networks=own, unverified=table.unverified))
    check_disjoint(networks)
    return tuple(overlays)


def _read_peers(file: ConfigFile, host: HostConfig) -> PeersConfig | None:
    table = file.tables.peers
    if table is None:
        return None
    place = file.at("peers", "listen")
    listen = read_listen(place, table.listen, host.addresses)
    if listen.port in host.ports:
        raise place.mistake(f"port {listen.port} is one of the ports of [host] ({host.ports})")
    return PeersConfig(
        listen=listen,
        certificate=read_readable(file.at("peers", "certificate"), table.certificate),
        key=read_readable(file.at("peers", "key"), table.key),
        authority=read_readable(file.at("peers", "authority"), table.authority),
    )


def _read_discovery(file: ConfigFile) -> DiscoveryConfig:
    table = file.tables.discovery
    check_names(file.at("discovery", "order"), table.order, PLUGIN_NAME)
    return DiscoveryConfig(order=table.order, rendezvous_port=table.rendezvous_port)


def _read_slim_run(file: ConfigFile) -> SlimRunConfig:
    table = file.tables.slim_run
    check_name(file.at("slim_run", "group"), table.group, GROUP_NAME)
    namespaces: dict[Path, NamespaceConfig] = {}
    for index in range(len(table.namespace)):
        namespace = _read_namespace(file, index)
        if namespaces.setdefault(namespace.netns, namespace) is not namespace:
            place = file.at("slim_run", "namespace", index, "netns")
            raise place.mistake(
                f"{namespace.netns} has an earlier table", "a namespace is one workload"
            )
    return SlimRunConfig(group=table.group, namespaces=tuple(namespaces.values()))


def _read_namespace(file: ConfigFile, index: int) -> NamespaceConfig:
    table = file.tables.slim_run.namespace[index]
    for key, text in (("workload", table.workload), ("namespace", table.namespace)):
        place = file.at("slim_run", "namespace", index, key)
        if not text:
            raise place.mistake("is empty")
        check_text(place, text)
    place = file.at("slim_run", "namespace", index, "labels")
    for label, text in table.labels.items():
        if not label:
            raise place.mistake("one has no name")
        check_text(place, label)
        check_text(place, text)
    return NamespaceConfig(
        netns=read_netns(file.at("slim_run", "namespace", index, "netns"), table.netns),
        workload=table.workload,
        namespace=table.namespace,
        labels=table.labels,
    )


def _read_plugins(file: ConfigFile) -> PluginsConfig:
    table = file.tables.plugins
    check_names(file.at("plugins", "load"), table.load, MODULE_NAME)
    check_names(file.at("plugins", "block"), table.block, PLUGIN_NAME)
    return PluginsConfig(load=table.load, block=table.block)
