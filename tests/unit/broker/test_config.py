"""A configuration becomes values; the host's addresses and ports are compared with the machine."""

from __future__ import annotations

import errno
import ipaddress
import socket
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import pytest

from slim.broker.config import (
    LOCAL_PORTS,
    BrokerConfig,
    DiscoveryConfig,
    HostConfig,
    LimitsConfig,
    LogConfig,
    NamespaceConfig,
    OverlayConfig,
    PeersConfig,
    PluginsConfig,
    PolicyConfig,
    SlimRunConfig,
    check_host_addresses,
    check_host_ports,
    load_config,
)
from slim.broker.endpoints import Endpoint, PortRange, parse_address
from slim.broker.errors import ConfigError
from support.configuration import HOST, config_text, load_text

FULL = """\
guard = "portable"
run_dir = "/run/other"

[host]
name = "node-1"
addresses = ["192.0.2.1", "2001:db8::1"]
ports = "10000-10999"

[[overlay]]
name = "blue"
networks = ["10.1.0.0/16", "fd01::/48"]
unverified = "deny"

[[overlay]]
name = "red"
networks = ["10.2.0.0/16"]

[peers]
listen = "[2001:db8::1]:7000"
certificate = "host.crt"
key = "host.key"
authority = "authority.crt"

[discovery]
order = ["etcd"]
rendezvous_port = 7001

[policy]
errno = "ECONNREFUSED"

[limits]
resolve_budget_ms = 21
connect_budget_ms = 1001
flow_lifetime_s = 301
gap_limit_s = 31

[slim_run]
group = "users"

[[slim_run.namespace]]
netns = "web"
workload = "web-1"
namespace = "shop"
labels = {app = "web"}

[[slim_run.namespace]]
netns = "/proc/7/ns/net"
workload = "db"

[plugins]
load = ["example.plugin"]
block = ["rules"]

[plugins.example]
colour = "blue"

[log]
level = "debug"
format = "json"
"""


def load(directory: Path, *more: str, host: str = HOST) -> BrokerConfig:
    return load_text(directory, config_text(*more, host=host))


def with_addresses(config: BrokerConfig, *addresses: str) -> BrokerConfig:
    return replace(
        config, host=replace(config.host, addresses=tuple(map(parse_address, addresses)))
    )


def test_every_key_becomes_a_value(tmp_path: Path) -> None:
    assert load_text(tmp_path, FULL) == BrokerConfig(
        path=tmp_path / "slimd.toml",
        guard="portable",
        run_dir=Path("/run/other"),
        host=HostConfig(
            name="node-1",
            addresses=(parse_address("192.0.2.1"), parse_address("2001:db8::1")),
            ports=PortRange(10000, 10999),
        ),
        overlays=(
            OverlayConfig(
                name="blue",
                networks=(
                    ipaddress.ip_network("10.1.0.0/16"),
                    ipaddress.ip_network("fd01::/48"),
                ),
                unverified="deny",
            ),
            OverlayConfig(
                name="red", networks=(ipaddress.ip_network("10.2.0.0/16"),), unverified=None
            ),
        ),
        peers=PeersConfig(
            listen=Endpoint(parse_address("2001:db8::1"), 7000),
            certificate=tmp_path / "host.crt",
            key=tmp_path / "host.key",
            authority=tmp_path / "authority.crt",
        ),
        discovery=DiscoveryConfig(order=("etcd",), rendezvous_port=7001),
        policy=PolicyConfig(errno=errno.ECONNREFUSED),
        limits=LimitsConfig(
            resolve_budget_ms=21, connect_budget_ms=1001, flow_lifetime_s=301, gap_limit_s=31
        ),
        slim_run=SlimRunConfig(
            group="users",
            namespaces=(
                NamespaceConfig(
                    netns=Path("/run/netns/web"),
                    workload="web-1",
                    namespace="shop",
                    labels={"app": "web"},
                ),
                NamespaceConfig(
                    netns=Path("/proc/7/ns/net"), workload="db", namespace="default", labels={}
                ),
            ),
        ),
        plugins=PluginsConfig(load=("example.plugin",), block=("rules",)),
        plugin_settings={"example": {"colour": "blue"}},
        log=LogConfig(level="debug", format="json"),
    )


def test_what_is_left_out_has_its_default(tmp_path: Path) -> None:
    config = load(tmp_path)
    assert config.run_dir == Path("/run/slim")
    assert config.host.ports == PortRange(20000, 29999)
    assert config.overlays[0].unverified is None
    assert config.peers is None
    assert config.discovery == DiscoveryConfig(order=("static", "rendezvous"), rendezvous_port=7947)
    assert config.policy.errno == errno.EACCES
    assert config.limits == LimitsConfig(
        resolve_budget_ms=20, connect_budget_ms=1000, flow_lifetime_s=300, gap_limit_s=30
    )
    assert config.slim_run == SlimRunConfig(group="slim", namespaces=())
    assert config.plugins == PluginsConfig(load=(), block=())
    assert config.plugin_settings == {}
    assert config.log == LogConfig(level="info", format="auto")


def test_a_loaded_configuration_cannot_be_changed(tmp_path: Path) -> None:
    config = load(tmp_path)
    with pytest.raises(FrozenInstanceError):
        config.limits.flow_lifetime_s = 1  # type: ignore[misc]


@pytest.mark.parametrize("name", ["EACCES", "ECONNREFUSED", "EHOSTUNREACH", "EPERM", "ETIMEDOUT"])
def test_the_errno_of_policy_is_a_number(tmp_path: Path, name: str) -> None:
    assert load(tmp_path, f'[policy]\nerrno = "{name}"').policy.errno == getattr(errno, name)


def test_both_guards_are_known(tmp_path: Path) -> None:
    for guard in ("portable", "kernel"):
        text = config_text(guard=f'guard = "{guard}"\n')
        assert load_text(tmp_path, text).guard == guard


NAMELESS = HOST.replace('name = "a"\n', "")


@pytest.mark.parametrize(
    ("machine", "name"), [("node-1.example.org", "node-1"), ("node-1", "node-1"), ("VM", "vm")]
)
def test_the_host_name_is_the_machines_up_to_the_first_dot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, machine: str, name: str
) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: machine)
    assert load(tmp_path, host=NAMELESS).host.name == name


@pytest.mark.parametrize("machine", ["(none)", "", "my_host", ".example.org"])
def test_a_machine_name_that_will_not_do_must_be_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, machine: str
) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: machine)
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, host=NAMELESS)
    assert caught.value.message == (
        f"{tmp_path}/slimd.toml: [host] name: is missing, and the machine's own "
        f"({machine.partition('.')[0]!r}) will not do"
    )
    assert 'Example: name = "node-1"' in caught.value.hint


def test_files_of_peers_start_at_the_configuration_and_not_at_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_text(tmp_path, FULL)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    config = load_config(Path("../slimd.toml"))
    assert config.peers is not None
    assert config.peers.key.is_absolute()
    assert config.peers.key.samefile(tmp_path / "host.key")


# --- the machine ------------------------------------------------------------------------------


def test_addresses_of_this_host_pass(tmp_path: Path) -> None:
    check_host_addresses(with_addresses(load(tmp_path), "127.0.0.1"))


@pytest.mark.parametrize("address", ["192.0.2.7", "2001:db8::7"])
def test_an_address_of_no_interface_is_refused(tmp_path: Path, address: str) -> None:
    # Documentation addresses (RFC 5737, RFC 3849): nobody has them.
    config = with_addresses(load(tmp_path), "127.0.0.1", address)
    with pytest.raises(ConfigError) as caught:
        check_host_addresses(config)
    assert caught.value.message == (
        f"{config.path}: [host] addresses: {address} is not assigned to any interface here"
    )
    assert "ip address" in caught.value.hint


@pytest.mark.parametrize(
    ("number", "error"), [(errno.EAFNOSUPPORT, ConfigError), (errno.EMFILE, OSError)]
)
def test_only_what_the_address_is_to_blame_for_is_blamed_on_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, error: type[Exception]
) -> None:
    def fail(*_: object) -> socket.socket:
        raise OSError(number, "no socket")

    config = load(tmp_path)
    monkeypatch.setattr(socket, "socket", fail)
    with pytest.raises(error):
        check_host_addresses(config)


@pytest.mark.parametrize(
    ("kernel", "ports"),
    [
        ("32768\t60999\n", "20000-29999"),
        ("30000\t60999\n", "20000-29999"),
        ("1024\t19999\n", "20000-29999"),
        ("32768 60999", "61000-65535"),
    ],
)
def test_ports_beside_the_kernels_pass(tmp_path: Path, kernel: str, ports: str) -> None:
    (tmp_path / "range").write_text(kernel)
    config = load(tmp_path, host=f'{HOST}ports = "{ports}"')
    check_host_ports(config, tmp_path / "range")


@pytest.mark.parametrize(
    ("kernel", "ports", "proposed"),
    [
        ("29999\t60999\n", "20000-29999", "30000 65535"),
        ("1024\t20000\n", "20000-29999", "30000 65535"),
        ("32768\t60999\n", "40000-40010", "1024 39999"),
        ("32768\t60999\n", "1-65535", ""),
    ],
)
def test_ports_that_overlap_the_kernels_are_refused_with_both_remedies(
    tmp_path: Path, kernel: str, ports: str, proposed: str
) -> None:
    (tmp_path / "range").write_text(kernel)
    config = load(tmp_path, host=f'{HOST}ports = "{ports}"')
    with pytest.raises(ConfigError) as caught:
        check_host_ports(config, tmp_path / "range")
    shown = "-".join(kernel.split())
    assert caught.value.message == (
        f"{config.path}: [host] ports: {ports} overlaps net.ipv4.ip_local_port_range ({shown}), "
        "the ports that the kernel gives to connecting sockets"
    )
    assert caught.value.hint.startswith("write other ports")
    assert ("sysctl" in caught.value.hint) is bool(proposed)
    if proposed:
        command = f'sysctl -w net.ipv4.ip_local_port_range="{proposed}"'
        assert caught.value.hint.endswith(f", or change the kernel's range: {command}")


def test_the_kernels_own_range_is_read(tmp_path: Path) -> None:
    first, last = LOCAL_PORTS.read_text().split()
    inside = f"{first}-{last}"
    with pytest.raises(ConfigError, match=inside):
        check_host_ports(load(tmp_path, host=f'{HOST}ports = "{inside}"'))
