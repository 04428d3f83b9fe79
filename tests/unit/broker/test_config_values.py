"""Values that have the right type and make no sense, each with its one message."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.configuration import (
    HOST,
    OVERLAY,
    PEER_FILES,
    PEERS,
    config_text,
    load_text,
    mistake_in,
)


def host(line: str) -> str:
    return config_text(host=f'[host]\nname = "a"\n{line}')


def overlay(networks: str, *more: str) -> str:
    return config_text(*more, overlay=f'[[overlay]]\nname = "blue"\nnetworks = {networks}')


def namespace(*lines: str, netns: str = "web", workload: str = "web-1") -> str:
    return "\n".join(
        ("[[slim_run.namespace]]", f'netns = "{netns}"', f'workload = "{workload}"', *lines)
    )


NETNS = "[[slim_run.namespace]] number 1, netns"
WORKLOAD = "[[slim_run.namespace]] number 1, workload"
LABELS = "[[slim_run.namespace]] number 1, labels"
NETWORKS = "[[overlay]] number 1, networks"

MISTAKES = [
    # run_dir
    (config_text(top='run_dir = ""'), "run_dir: '' is not a path"),
    (config_text(top='run_dir = "run/slim"'), "run_dir: 'run/slim' is not an absolute path"),
    (config_text(top='run_dir = "/run/\\u0000"'), "run_dir: '/run/\\x00' is not a path"),
    (
        config_text(top=f'run_dir = "/{"é" * 45}"'),
        f"run_dir: '/{'é' * 45}' is longer than 90 bytes",
    ),
    # [host] name
    *(
        (
            config_text(host=HOST.replace('"a"', f'"{name}"')),
            f"[host] name: '{name}' is not such a ",
        )
        for name in ("", "A", "a_b", "a b", "-a", "a-", "a" * 51 + "é")
    ),
    (
        config_text(host=HOST.replace('"a"', f'"{"a" * 64}"')),
        f"[host] name: '{'a' * 57}...' is not such a name",
    ),
    # [host] addresses
    *(
        (host(f'addresses = ["{text}"]'), f"[host] addresses: '{text}' is not an IP address")
        for text in (
            "",
            "host-a",
            "192.0.2.1/24",
            "192.0.2.256",
            "192.0.2.01",
            "fe80::1%eth0",
            "1::2::",
        )
    ),
    *(
        (
            host(f'addresses = ["192.0.2.1", "{text}"]'),
            f"[host] addresses: {text} is {kind}, other hosts cannot reach this one there",
        )
        for text, kind in (
            ("0.0.0.0", "unspecified"),
            ("::", "unspecified"),
            ("127.0.0.1", "loopback"),
            ("127.255.255.255", "loopback"),
            ("::1", "loopback"),
            ("169.254.0.0", "link-local"),
            ("169.254.255.255", "link-local"),
            ("fe80::1", "link-local"),
            ("febf::1", "link-local"),
            ("224.0.0.0", "multicast"),
            ("239.255.255.255", "multicast"),
            ("ff02::1", "multicast"),
        )
    ),
    (
        host('addresses = ["::ffff:127.0.0.1"]'),
        "[host] addresses: 127.0.0.1 is loopback, other hosts cannot reach this one there",
    ),
    (
        host('addresses = ["192.0.2.1", "192.0.2.1"]'),
        "[host] addresses: '192.0.2.1' is there twice",
    ),
    (
        host('addresses = ["2001:db8::1", "2001:DB8:0::1"]'),
        "[host] addresses: '2001:db8::1' is there twice",
    ),
    (
        host('addresses = ["192.0.2.1", "::ffff:192.0.2.1"]'),
        "[host] addresses: '192.0.2.1' is there twice",
    ),
    # [host] ports
    *(
        (
            config_text(host=f'{HOST}ports = "{text}"'),
            f"[host] ports: '{text}' is not first-last, between 1 and 65535",
        )
        for text in ("", "20000", "20000-", "0-100", "2-1", "1-65536", "20000:29999", "-1-5")
    ),
    # [[overlay]] name
    *(
        (
            config_text(overlay=OVERLAY.replace("blue", name)),
            f"[[overlay]] number 1, name: '{name}' is not such a name",
        )
        for name in ("", "Blue", "blue_1", "blue.1", "blue 1", "blü")
    ),
    (
        config_text(overlay=OVERLAY.replace("blue", "b" * 64)),
        f"[[overlay]] number 1, name: '{'b' * 57}...' is not such a name",
    ),
    # [[overlay]] networks
    *(
        (overlay(f'["{text}"]'), f"{NETWORKS}: '{text}' is not address/length")
        for text in (
            "",
            "10.1.0.0",
            "10.1.0.0/",
            "10.1.0.0/33",
            "10.1.0.0/255.255.0.0",
            "10.1/16",
            "blue",
            "fd00::/129",
            "fd00::%eth0/-1",
            "10.1.0.0/16/16",
        )
    ),
    *(
        (overlay(f'["{text}"]'), f"{NETWORKS}: {shown} holds {kind} addresses")
        for text, shown, kind in (
            ("0.0.0.0/0", "0.0.0.0/0", "unspecified"),
            ("::/0", "::/0", "unspecified"),
            ("127.0.0.0/16", "127.0.0.0/16", "loopback"),
            ("126.0.0.0/7", "126.0.0.0/7", "loopback"),
            ("::1/128", "::1/128", "loopback"),
            ("169.254.1.0/24", "169.254.1.0/24", "link-local"),
            ("fe80::/64", "fe80::/64", "link-local"),
            ("224.0.0.0/8", "224.0.0.0/8", "multicast"),
            ("ff00::/16", "ff00::/16", "multicast"),
            ("::ffff:10.1.0.0/112", "::ffff:a01:0/112", "IPv4-mapped"),
        )
    ),
    (
        overlay('["10.1.0.0/16", "10.1.0.0/16"]'),
        f"{NETWORKS}: 10.1.0.0/16 of 'blue' overlaps 10.1.0.0/16 of 'blue'",
    ),
    (
        overlay('["10.1.2.0/24", "10.1.0.0/16"]'),
        f"{NETWORKS}: 10.1.2.0/24 of 'blue' overlaps 10.1.0.0/16 of 'blue'",
    ),
    (
        overlay('["fd00:0:0:1::/64", "10.1.0.0/16", "fd00::/48"]'),
        f"{NETWORKS}: fd00:0:0:1::/64 of 'blue' overlaps fd00::/48 of 'blue'",
    ),
    # [peers] listen
    *(
        (
            config_text(PEERS.replace("192.0.2.1:7946", text)),
            f"[peers] listen: '{text}' is not address:port",
        )
        for text in (
            "",
            "192.0.2.1",
            "192.0.2.1:",
            ":7946",
            "7946",
            "host-a:7946",
            "2001:db8::1:7946",
            "[2001:db8::1]",
            "[192.0.2.1]:7946",
            "192.0.2.1:65536",
            "192.0.2.1:-1",
        )
    ),
    (
        config_text(PEERS.replace("192.0.2.1:", "192.0.2.9:")),
        "[peers] listen: 192.0.2.9 is not among the addresses of [host]",
    ),
    (
        config_text(PEERS.replace(":7946", ":0")),
        "[peers] listen: 0 is not a port that others can connect to",
    ),
    *(
        (
            config_text(PEERS.replace(":7946", f":{port}")),
            f"[peers] listen: port {port} is one of the ports of [host] (20000-29999)",
        )
        for port in (20000, 29999)
    ),
    # [discovery] order
    (config_text('[discovery]\norder = ["a b"]'), "[discovery] order: 'a b' is not such a name"),
    (
        config_text('[discovery]\norder = ["static", "etcd", "static"]'),
        "[discovery] order: 'static' is there twice",
    ),
    # [slim_run]
    *(
        (config_text(f'[slim_run]\ngroup = "{name}"'), f"[slim_run] group: '{name}' is not such a ")
        for name in ("", "0", "a:b", "a b", "g" * 33)
    ),
    *(
        (
            config_text(namespace(netns=netns)),
            f"{NETNS}: '{netns}' is neither a name nor an absolute path",
        )
        for netns in (".", "..", "a/b", "./a")
    ),
    (config_text(namespace(netns="")), f"{NETNS}: '' is not a path"),
    (config_text(namespace(netns="a\\u0000")), f"{NETNS}: 'a\\x00' is not a path"),
    (config_text(namespace(netns="812")), f"{NETNS}: '812' is a process id, not a name"),
    (config_text(namespace(workload="")), f"{WORKLOAD}: is empty"),
    (
        config_text(namespace(workload="w" * 257)),
        f"{WORKLOAD}: '{'w' * 57}...' is longer than 256 characters",
    ),
    (
        config_text(namespace(workload="a\\nb")),
        f"{WORKLOAD}: 'a\\nb' has characters that cannot be printed",
    ),
    (
        config_text(namespace('namespace = ""')),
        "[[slim_run.namespace]] number 1, namespace: is empty",
    ),
    (config_text(namespace('labels = {"" = "x"}')), f"{LABELS}: one has no name"),
    (
        config_text(namespace(f'labels = {{{"k" * 257} = "x"}}')),
        f"{LABELS}: '{'k' * 57}...' is longer than 256 characters",
    ),
    (
        config_text(namespace(f'labels = {{k = "{"v" * 257}"}}')),
        f"{LABELS}: '{'v' * 57}...' is longer than 256 characters",
    ),
    (
        config_text(namespace(), namespace(netns="/run/netns/web")),
        "[[slim_run.namespace]] number 2, netns: /run/netns/web has an earlier table",
    ),
    # [plugins]
    *(
        (
            config_text(f'[plugins]\nload = ["{name}"]'),
            f"[plugins] load: '{name}' is not such a name",
        )
        for name in ("", "a-b", "a..b", ".a", "a/b.py", "1a")
    ),
    (config_text('[plugins]\nload = ["a", "a"]'), "[plugins] load: 'a' is there twice"),
    (config_text('[plugins]\nblock = ["a,b"]'), "[plugins] block: 'a,b' is not such a name"),
    (config_text('[plugins]\nblock = ["a", "a"]'), "[plugins] block: 'a' is there twice"),
]


@pytest.mark.parametrize(("text", "message"), MISTAKES)
def test_a_value_that_makes_no_sense_is_refused_by_name(
    tmp_path: Path, text: str, message: str
) -> None:
    told, _ = mistake_in(tmp_path, text)
    assert told.startswith(message)


@pytest.mark.parametrize(
    ("network", "proper"),
    [("10.1.0.1/16", "10.1.0.0/16"), ("fd00::1/64", "fd00::/64"), ("192.0.2.1/0", "0.0.0.0/0")],
)
def test_a_network_with_host_bits_is_refused_with_the_proper_one(
    tmp_path: Path, network: str, proper: str
) -> None:
    told, hint = mistake_in(tmp_path, overlay(f'["{network}"]'))
    assert told == f"{NETWORKS}: '{network}' has bits set behind its length"
    assert hint == f'write "{proper}"'


@pytest.mark.parametrize(
    ("network", "address"),
    [
        ("192.0.2.0/24", "192.0.2.1"),
        ("192.0.2.1/32", "192.0.2.1"),
        ("2001:db8::/32", "2001:db8::1"),
    ],
)
def test_a_network_that_holds_a_host_address_is_refused(
    tmp_path: Path, network: str, address: str
) -> None:
    told, hint = mistake_in(tmp_path, overlay(f'["10.1.0.0/16", "{network}"]'))
    assert told == f"{NETWORKS}: {network} holds {address}, an address of this host"
    assert "underlay" in hint


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ("10.1.0.0/16", "10.1.255.0/24", "number 2, networks: 10.1.255.0/24 of 'red' overlaps "),
        ("10.1.255.0/24", "10.1.0.0/16", "number 1, networks: 10.1.255.0/24 of 'blue' overlaps "),
        ("fd00::/16", "fd00::/16", "number 2, networks: fd00::/16 of 'red' overlaps fd00::/16 of "),
    ],
)
def test_overlapping_networks_of_two_overlays_are_refused_with_both_names(
    tmp_path: Path, first: str, second: str, message: str
) -> None:
    text = overlay(f'["{first}"]', f'[[overlay]]\nname = "red"\nnetworks = ["{second}"]')
    told, _ = mistake_in(tmp_path, text)
    assert told.startswith(f"[[overlay]] {message}")
    assert "'red'" in told
    assert "'blue'" in told


def test_an_overlap_is_found_with_disjoint_networks_between(tmp_path: Path) -> None:
    told, _ = mistake_in(
        tmp_path, overlay('["10.0.0.0/8", "11.0.0.0/24", "9.0.0.0/8", "10.255.255.255/32"]')
    )
    assert told == f"{NETWORKS}: 10.255.255.255/32 of 'blue' overlaps 10.0.0.0/8 of 'blue'"


def test_neighbouring_networks_are_accepted(tmp_path: Path) -> None:
    config = load_text(
        tmp_path,
        overlay(
            '["10.0.0.0/9", "10.128.0.0/9", "a00::/9", "a80::/9"]',
            '[[overlay]]\nname = "red"\nnetworks = ["9.0.0.0/8", "11.0.0.0/8", "::a00:0/104"]',
        ),
    )
    assert [len(one.networks) for one in config.overlays] == [4, 3]


def test_a_second_overlay_of_the_same_name_is_refused(tmp_path: Path) -> None:
    told, hint = mistake_in(tmp_path, config_text(OVERLAY.replace("10.1", "10.2")))
    assert told == "[[overlay]] number 2, name: 'blue' is the name of an earlier one"
    assert hint == "take another"


@pytest.mark.parametrize("key", ["certificate", "key", "authority"])
@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("gone", "cannot read {dir}/gone: No such file or directory"),
        ("/nowhere/gone", "cannot read /nowhere/gone: No such file or directory"),
        (".", "cannot read {dir}: Is a directory"),
        ("/dev/null", "cannot read /dev/null: Not a regular file"),
        ("", "'' is not a path"),
        ("a\\u0000", "'a\\x00' is not a path"),
    ],
)
def test_a_file_of_peers_that_cannot_be_read_is_refused_by_its_key(
    tmp_path: Path, key: str, value: str, reason: str
) -> None:
    name = dict(zip(("certificate", "key", "authority"), PEER_FILES, strict=True))[key]
    told, _ = mistake_in(tmp_path, config_text(PEERS.replace(f'"{name}"', f'"{value}"')))
    assert told == f"[peers] {key}: {reason.format(dir=tmp_path)}"


# --- borders that are inside ------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a", "0", "node-1.example", "a" * 63])
def test_host_names_up_to_63_characters_are_accepted(tmp_path: Path, name: str) -> None:
    assert load_text(tmp_path, config_text(host=HOST.replace('"a"', f'"{name}"'))).host.name == name


@pytest.mark.parametrize("name", ["b", "0-9", "b" * 63])
def test_overlay_names_up_to_63_characters_are_accepted(tmp_path: Path, name: str) -> None:
    config = load_text(tmp_path, config_text(overlay=OVERLAY.replace("blue", name)))
    assert config.overlays[0].name == name


@pytest.mark.parametrize("ports", ["1-1", "1-65535", "65535-65535", "20000-29999"])
def test_port_ranges_up_to_their_borders_are_accepted(tmp_path: Path, ports: str) -> None:
    assert (
        str(load_text(tmp_path, config_text(host=f'{HOST}ports = "{ports}"')).host.ports) == ports
    )


def test_sixteen_host_addresses_are_accepted(tmp_path: Path) -> None:
    addresses = [f"192.0.2.{number}" for number in range(1, 17)]
    config = load_text(tmp_path, host(f"addresses = {addresses}"))
    assert [str(address) for address in config.host.addresses] == addresses


@pytest.mark.parametrize("port", [1, 19999, 30000, 65535])
def test_control_ports_beside_the_host_ports_are_accepted(tmp_path: Path, port: int) -> None:
    config = load_text(tmp_path, config_text(PEERS.replace(":7946", f":{port}")))
    assert config.peers is not None
    assert config.peers.listen.port == port


@pytest.mark.parametrize("listen", ["192.0.2.1:1", "[2001:db8::1]:1", "0.0.0.0:1", "[::]:1"])
def test_control_listens_at_a_host_address_or_at_all(tmp_path: Path, listen: str) -> None:
    config = load_text(tmp_path, config_text(PEERS.replace("192.0.2.1:7946", listen)))
    assert config.peers is not None
    assert str(config.peers.listen) == listen


def test_a_run_dir_of_90_bytes_is_accepted(tmp_path: Path) -> None:
    path = "/" + "r" * 89
    assert load_text(tmp_path, config_text(top=f'run_dir = "{path}"')).run_dir == Path(path)


def test_labels_may_be_empty_and_256_characters_long(tmp_path: Path) -> None:
    text = namespace(f'labels = {{"example.org/k" = "", {"k" * 256} = "{"é" * 256}"}}')
    config = load_text(tmp_path, config_text(text))
    assert config.slim_run.namespaces[0].labels == {"example.org/k": "", "k" * 256: "é" * 256}


@pytest.mark.parametrize(
    ("netns", "path"),
    [
        ("web", "/run/netns/web"),
        ("web.1", "/run/netns/web.1"),
        ("/proc/7/ns/net", "/proc/7/ns/net"),
        ("/run/netns/812", "/run/netns/812"),
    ],
)
def test_a_namespace_is_a_name_or_an_absolute_path(tmp_path: Path, netns: str, path: str) -> None:
    config = load_text(tmp_path, config_text(namespace(netns=netns)))
    assert config.slim_run.namespaces[0].netns == Path(path)
