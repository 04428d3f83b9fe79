"""The built-in overlay between two namespaces that play hosts: slimctl, devices, and traffic."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from support.overlay_hosts import (
    Host,
    addresses_of,
    device_of,
    devices_of,
    inside,
    ip,
    namespace,
    run_inside,
    send,
    two_hosts,
)
from support.polling import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_netns]

BOTH = "--network 10.77.0.0/16 --network6 fd77::/48"
FIRST = f"create web {BOTH} --subnet 10.77.1.0/24 --subnet6 fd77:0:0:1::/64"
SECOND = f"create web {BOTH} --subnet 10.77.2.0/24 --subnet6 fd77:0:0:2::/64"
CREATE = f"{FIRST} --underlay 192.168.77.1"
BRIDGE, VXLAN = "sb-web", "sx-web"


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[tuple[Host, Host]]:
    with two_hosts(tmp_path) as hosts:
        yield hosts


@pytest.fixture
def host(hosts: tuple[Host, Host]) -> Host:
    """One of two hosts."""
    return hosts[0]


@pytest.fixture(scope="module")
def empty_host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """A host without an overlay; its tests leave it so, since making one takes a while."""
    with two_hosts(tmp_path_factory.mktemp("empty")) as hosts:
        yield hosts[0]


@pytest.fixture(scope="module")
def web_host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """A host with an overlay and nothing else; its tests leave it so."""
    with two_hosts(tmp_path_factory.mktemp("web")) as hosts:
        hosts[0].succeed(CREATE)
        yield hosts[0]


@pytest.fixture
def container() -> Iterator[str]:
    with namespace() as name:
        yield name


@pytest.fixture
def other_container() -> Iterator[str]:
    with namespace() as name:
        yield name


# --- traffic --------------------------------------------------------------------------------------


@pytest.mark.parametrize("underlay", ["address", "address6"])
def test_containers_of_two_hosts_reach_each_other(
    hosts: tuple[Host, Host], container: str, other_container: str, underlay: str
) -> None:
    first, second = hosts
    here, there = getattr(first, underlay), getattr(second, underlay)
    first.succeed(
        f"{FIRST} --underlay {here}", f"join web --peer {there}", f"attach web --netns {container}"
    )
    second.succeed(
        f"{SECOND} --underlay {there}",
        f"join web --peer {here}",
        f"attach web --netns {other_container}",
    )
    # Large enough for full frames, which show an MTU that is too large.
    assert send(container, other_container, "10.77.2.1") == "10.77.1.1 200000"
    assert send(other_container, container, "fd77:0:0:1::1") == "fd77:0:0:2::1 200000"


def test_an_overlay_may_be_without_ipv4(
    hosts: tuple[Host, Host], container: str, other_container: str
) -> None:
    first, second = hosts
    for host, peer, subnet, netns in (
        (first, second, "fd77:0:0:1::/64", container),
        (second, first, "fd77:0:0:2::/64", other_container),
    ):
        host.succeed(
            f"create web --network6 fd77::/48 --subnet6 {subnet} --underlay {host.address6}",
            f"join web --peer {peer.address6}",
            f"attach web --netns {netns}",
        )
    assert send(container, other_container, "fd77:0:0:2::1") == "fd77:0:0:1::1 200000"
    assert addresses_of(container, "eth0") == {"fd77:0:0:1::1/48"}


def test_containers_of_one_host_reach_each_other(
    host: Host, container: str, other_container: str
) -> None:
    host.succeed(CREATE, f"attach web --netns {container}", f"attach web --netns {other_container}")
    assert send(container, other_container, "10.77.1.2") == "10.77.1.1 200000"
    assert send(other_container, container, "fd77:0:0:1::1") == "fd77:0:0:1::2 200000"


def test_a_peer_that_was_left_is_reached_no_more(
    hosts: tuple[Host, Host], container: str, other_container: str
) -> None:
    first, second = hosts
    first.succeed(CREATE, "join web --peer 192.168.77.2", f"attach web --netns {container}")
    second.succeed(
        f"{SECOND} --underlay 192.168.77.2",
        "join web --peer 192.168.77.1",
        f"attach web --netns {other_container}",
    )
    assert send(container, other_container, "10.77.2.1")
    assert "192.168.77.2" in _forwarding(first)

    # The other one first: whatever it still sends (neighbour discovery) would be learned anew.
    second.succeed("leave web --peer 192.168.77.1")
    first.succeed("leave web --peer 192.168.77.2")

    # What was learned from traffic is gone too.
    assert _flood_list(first) == set()
    assert "192.168.77.2" not in _forwarding(first)


def test_the_host_does_not_answer_on_the_overlay(host: Host, container: str) -> None:
    host.succeed(CREATE, f"attach web --netns {container}")
    assert addresses_of(host.netns, BRIDGE) == set()
    for name in (BRIDGE, VXLAN, *_ports(host)):
        shown = ip(host.netns, f"address show dev {name}")
        assert not [one for link in shown for one in link["addr_info"] if one]
    # The container takes the host's own address for one on the overlay, and asks for it there;
    # the host would even know the way back.
    ip(host.netns, f"route add 10.77.0.0/16 dev {BRIDGE}")
    ip(container, "route add 192.168.77.1/32 dev eth0")
    asked = run_inside(container, sys.executable, "-c", _ASK_FOR_HOST)
    assert asked.strip() == "EHOSTUNREACH"


_ASK_FOR_HOST = """
import errno, socket
with socket.socket() as sock:
    sock.settimeout(10)
    try:
        sock.connect(("192.168.77.1", 9))
    except OSError as error:
        print(errno.errorcode.get(error.errno))
"""


# --- devices --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("underlay", "option", "expected"),
    [("address", "", 1450), ("address6", "", 1430), ("address", "--mtu 1400", 1400)],
)
def test_mtu_leaves_room_for_the_outer_headers(
    host: Host, container: str, underlay: str, option: str, expected: int
) -> None:
    host.succeed(
        f"{FIRST} --underlay {getattr(host, underlay)} {option}",
        f"attach web --netns {container}",
    )
    for name in (BRIDGE, VXLAN, *_ports(host)):
        assert device_of(host.netns, name)["mtu"] == expected
    assert device_of(container, "eth0")["mtu"] == expected


def test_created_devices_carry_the_settings(host: Host) -> None:
    host.succeed(f"{CREATE} --vni 4242 --port 5789", "join web --peer 192.168.77.2")
    data = device_of(host.netns, VXLAN)["linkinfo"]["info_data"]
    assert (data["id"], data["local"], data["port"]) == (4242, "192.168.77.1", 5789)
    assert device_of(host.netns, VXLAN)["master"] == BRIDGE
    assert _flood_list(host) == {"192.168.77.2"}


def test_the_vni_of_a_name_is_the_same_on_every_host(hosts: tuple[Host, Host]) -> None:
    hosts[0].succeed(CREATE)
    hosts[1].succeed(f"{SECOND} --underlay 192.168.77.2")
    (first, second) = (
        device_of(host.netns, VXLAN)["linkinfo"]["info_data"]["id"] for host in hosts
    )
    assert first == second


def test_an_overlay_of_one_family_gives_addresses_of_that_family(
    host: Host, container: str
) -> None:
    printed = host.succeed(
        "create web --network6 fd77::/48 --subnet6 fd77:0:0:1::/64 --underlay 192.168.77.1",
        f"attach web --netns {container}",
    )
    assert printed[1] == "eth0 fd77:0:0:1::1\n"
    assert addresses_of(container, "eth0") == {"fd77:0:0:1::1/48"}


def test_a_long_name_makes_devices_too(host: Host) -> None:
    name = "a-very-long-name-for-an-overlay"
    host.succeed(CREATE.replace("create web", f"create {name}"))
    made = host.devices() - {"lo", "under0"}
    assert len(made) == 2
    host.succeed(f"delete {name}")
    assert host.devices() == {"lo", "under0"}


# --- attaching ------------------------------------------------------------------------------------


def test_attach_prints_the_device_and_gives_addresses_of_the_subnet(
    host: Host, container: str
) -> None:
    printed = host.succeed(CREATE, f"attach web --netns {container}")
    assert printed[1] == "eth0 10.77.1.1 fd77:0:0:1::1\n"
    # The prefix lengths of the whole overlay: all of it is on-link.
    assert addresses_of(container, "eth0") == {"10.77.1.1/16", "fd77:0:0:1::1/48"}
    assert "UP" in device_of(container, "eth0")["flags"]
    assert "UP" in device_of(container, "lo")["flags"]


def test_addresses_asked_for_are_given(host: Host, container: str) -> None:
    printed = host.succeed(
        CREATE, f"attach web --netns {container} --ip 10.77.1.77 --ip6 fd77:0:0:1::77"
    )
    assert printed[1] == "eth0 10.77.1.77 fd77:0:0:1::77\n"
    assert addresses_of(container, "eth0") == {"10.77.1.77/16", "fd77:0:0:1::77/48"}


def test_attach_takes_a_path_and_a_process_id(
    host: Host, container: str, other_container: str
) -> None:
    sleeper = subprocess.Popen(inside(other_container, "sleep", "60"))
    try:
        there = os.stat(f"/run/netns/{other_container}").st_ino
        eventually(
            lambda: os.stat(f"/proc/{sleeper.pid}/ns/net").st_ino == there, "in the namespace"
        )
        host.succeed(
            CREATE,
            f"attach web --netns /run/netns/{container}",
            f"attach web --netns {sleeper.pid}",
        )
    finally:
        sleeper.kill()
        sleeper.wait()
    assert addresses_of(container, "eth0") == {"10.77.1.1/16", "fd77:0:0:1::1/48"}
    assert addresses_of(other_container, "eth0") == {"10.77.1.2/16", "fd77:0:0:1::2/48"}


def test_attach_takes_the_next_free_device_name(host: Host, container: str) -> None:
    ip(container, "link add eth0 type bridge")
    assert host.succeed(CREATE, f"attach web --netns {container}")[1].startswith("eth1 ")


def test_attaching_again_gives_what_is_there(host: Host, container: str) -> None:
    once, again, same = host.succeed(
        CREATE,
        f"attach web --netns {container}",
        f"attach web --netns {container}",
        f"attach web --netns {container} --ip 10.77.1.1",
    )[1:]
    assert once == again == same
    assert devices_of(container) == {"lo", "eth0"}


def test_detach_leaves_nothing_and_the_address_rests(
    host: Host, container: str, other_container: str
) -> None:
    host.succeed(CREATE, f"attach web --netns {container}", f"detach web --netns {container}")
    assert devices_of(container) == {"lo"}
    assert host.devices() == {"lo", "under0", BRIDGE, VXLAN}
    printed = host.succeed(
        f"attach web --netns {other_container}", f"attach web --netns {container} --ip 10.77.1.1"
    )
    assert printed[0].split()[1] == "10.77.1.2"
    assert printed[1].split()[1] == "10.77.1.1"


def test_detach_by_address(host: Host, container: str) -> None:
    host.succeed(CREATE, f"attach web --netns {container}", "detach web --ip fd77:0:0:1::1")
    assert devices_of(container) == {"lo"}


def test_a_container_that_is_gone_gives_its_address_back(host: Host, other_container: str) -> None:
    with namespace() as short_lived:
        host.succeed(CREATE, f"attach web --netns {short_lived} --ip 10.77.1.9")
    eventually(lambda: not _ports(host), "the device of the dead container is gone")
    printed = host.succeed(
        "show web", f"attach web --netns {other_container} --ip 10.77.1.9", "delete web --force"
    )
    assert "no container is attached" in printed[0]
    assert printed[1].split()[1] == "10.77.1.9"


def test_an_address_has_one_mac_for_all_its_containers(
    host: Host, container: str, other_container: str
) -> None:
    host.succeed(CREATE, f"attach web --netns {container} --ip 10.77.1.9")
    first = device_of(container, "eth0")["address"]
    host.succeed(
        f"detach web --netns {container}", f"attach web --netns {other_container} --ip 10.77.1.9"
    )
    assert device_of(other_container, "eth0")["address"] == first


# --- restoring, showing, deleting -----------------------------------------------------------------


def test_delete_leaves_nothing(host: Host, container: str) -> None:
    host.succeed(
        CREATE,
        "join web --peer 192.168.77.2",
        f"attach web --netns {container}",
        "delete web --force",
    )
    assert host.devices() == {"lo", "under0"}
    assert devices_of(container) == {"lo"}
    assert list(host.state_dir.iterdir()) == []
    assert host.succeed("show")[0] == "no overlay on this host\n"


def test_creating_again_with_the_same_options_changes_nothing(host: Host) -> None:
    host.succeed(CREATE)
    before = device_of(host.netns, VXLAN)["ifindex"]
    host.succeed(CREATE)
    assert device_of(host.netns, VXLAN)["ifindex"] == before


@pytest.mark.parametrize("lost", [[BRIDGE], [VXLAN], [BRIDGE, VXLAN]])
@pytest.mark.parametrize("command", [CREATE, "attach web --netns {}"])
def test_lost_devices_are_restored(
    host: Host, container: str, other_container: str, lost: list[str], command: str
) -> None:
    host.succeed(CREATE, "join web --peer 192.168.77.2", f"attach web --netns {container}")
    for name in lost:
        ip(host.netns, f"link del {name}")

    host.succeed(command.format(other_container), f"attach web --netns {other_container}")

    assert _flood_list(host) == {"192.168.77.2"}
    assert device_of(host.netns, VXLAN)["master"] == BRIDGE
    assert send(container, other_container, "10.77.1.2", 1000) == "10.77.1.1 1000"


def test_joining_again_is_no_error(host: Host) -> None:
    host.succeed(CREATE, "join web --peer 192.168.77.2", "join web --peer 192.168.77.2")
    assert _flood_list(host) == {"192.168.77.2"}


def test_show_lists_overlays_and_containers(host: Host, container: str) -> None:
    _, _, _, table, text, as_json = host.succeed(
        f"{CREATE} --vni 42",
        "join web --peer 192.168.77.2",
        f"attach web --netns {container}",
        "show",
        "show web",
        "show web --json",
    )
    assert table.splitlines()[1].split() == [
        "web", "10.77.1.0/24", "fd77:0:0:1::/64", "192.168.77.1", "42", "1450", "1", "1",
    ]  # fmt: skip
    assert "peers 192.168.77.2" in text
    assert text.splitlines()[-1].split()[:4] == [
        container, "eth0", "10.77.1.1", "fd77:0:0:1::1",
    ]  # fmt: skip
    (shown,) = json.loads(as_json)["overlays"]
    assert (shown["name"], shown["vni"], shown["peers"]) == ("web", 42, ["192.168.77.2"])
    assert shown["attachments"][0]["addresses"] == ["10.77.1.1", "fd77:0:0:1::1"]


def test_two_overlays_live_side_by_side(host: Host, container: str) -> None:
    host.succeed(
        CREATE,
        "create db --network 10.78.0.0/16 --subnet 10.78.1.0/24 --underlay 192.168.77.1",
    )
    printed = host.succeed(f"attach web --netns {container}", f"attach db --netns {container}")
    assert [line.split()[:2] for line in printed] == [["eth0", "10.77.1.1"], ["eth1", "10.78.1.1"]]


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (f"{FIRST} --underlay 192.168.77.9", "192.168.77.9 is not on this host"),
        (f"{FIRST} --underlay 127.0.0.1", "no address that other hosts can send to"),
        (f"{CREATE} --mtu 1451", "MTU 1451 is more than 1450"),
        (f"{CREATE} --mtu 1279", "MTU 1279 is less than 1280"),
        (f"{CREATE} --mtu some", "neither auto nor a number"),
        (CREATE.replace("web", "Web"), "'Web' is not a name for an overlay"),
        (
            "create web --network 10.77.0.0/16 --subnet 10.78.1.0/24 --underlay 192.168.77.1",
            "10.78.1.0/24 is not inside the network 10.77.0.0/16",
        ),
        (
            "create web --network 10.77.0.0/16 --underlay 192.168.77.1",
            "--network and --subnet go together",
        ),
        ("create web --underlay 192.168.77.1", "an overlay needs a network"),
        (
            "create web --network 192.168.0.0/16 --subnet 192.168.1.0/24 --underlay 192.168.77.1",
            "holds the underlay address 192.168.77.1",
        ),
        (
            "create web --network 10.77.0.1/16 --subnet 10.77.1.0/24 --underlay 192.168.77.1",
            "has host bits set",
        ),
        ("show web", "there is no overlay 'web' on this host"),
        ("delete web", "there is no overlay 'web' on this host"),
    ],
)
def test_what_cannot_be_made_is_refused_and_leaves_nothing(
    empty_host: Host, command: str, message: str
) -> None:
    assert message in " ".join(empty_host.fail(command).split())
    assert empty_host.devices() == {"lo", "under0"}
    assert not empty_host.state_dir.exists() or list(empty_host.state_dir.iterdir()) == []


def test_a_network_that_the_host_has_a_route_to_is_refused(host: Host) -> None:
    ip(host.netns, "route add 10.0.0.0/8 via 192.168.77.2")
    refusal = host.fail(CREATE)
    assert "10.77.0.0/16 overlaps the host's route to 10.0.0.0/8 (under0)" in refusal
    assert "hint: choose a network" in refusal


def test_a_default_route_is_in_nobodys_way(host: Host) -> None:
    ip(host.netns, "route add default via 192.168.77.2")
    ip(host.netns, "-6 route add default via fd99:77::2")
    host.succeed(CREATE)


def test_a_network_of_another_overlay_is_refused(host: Host) -> None:
    host.succeed(CREATE)
    refusal = host.fail(CREATE.replace("create web", "create db"))
    assert "10.77.0.0/16 overlaps 10.77.0.0/16, the network of overlay web" in refusal


def test_an_overlay_with_other_settings_is_refused(host: Host) -> None:
    host.succeed(CREATE)
    refusal = host.fail(f"{CREATE} --vni 5")
    assert "overlay web exists with other settings: 10.77.1.0/24 of 10.77.0.0/16" in refusal


def test_a_vni_that_is_taken_is_refused(host: Host) -> None:
    ip(host.netns, "link add foreign type vxlan id 42 dstport 4789")
    assert "VNI 42 is taken on UDP port 4789, by foreign" in host.fail(f"{CREATE} --vni 42")
    host.succeed(f"{CREATE} --vni 42 --port 4790")


def test_a_device_of_somebody_else_is_left_alone(host: Host) -> None:
    ip(host.netns, f"link add {BRIDGE} type bridge")
    assert f"there is a device {BRIDGE} already" in host.fail(CREATE)
    assert BRIDGE in host.devices()


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("join web --peer 192.168.77.1", "this host's own underlay address"),
        ("join web --peer fd99:77::2", "the underlay of overlay web is IPv4"),
        ("join web --peer 10.77.2.1", "is an address of the overlay itself"),
        ("join web --peer 224.0.0.1", "no address that other hosts can send to"),
        ("join web --peer nobody", "'nobody' is not an IP address"),
        ("join other --peer 192.168.77.2", "there is no overlay 'other'"),
        ("leave web --peer 192.168.77.2", "192.168.77.2 is no peer of overlay web"),
        ("attach web --netns {} --ip 10.77.2.1", "10.77.2.1 is not an address of this host's"),
        ("attach web --netns {} --ip 10.77.1.0", "10.77.1.0 is not an address of this host's"),
        ("attach web --netns {} --ip fd77::1", "fd77::1 is not IPv4"),
        ("attach web --netns no-such-namespace", "No such file or directory"),
        ("attach web --netns /dev/null", "that is no network namespace"),
        ("detach web --netns /dev/null", "that is no network namespace"),
        ("attach web --netns /proc/self/ns/net", "the host's own network namespace"),
        ("detach web --netns {}", "the namespace is not attached to overlay web"),
        ("detach web --ip 10.77.1.1", "10.77.1.1 is not attached to overlay web"),
        ("detach web", "give --netns or --ip"),
    ],
)
def test_what_cannot_be_done_is_refused_with_a_reason(
    web_host: Host, container: str, command: str, message: str
) -> None:
    before = (web_host.state_dir / "overlay-web.json").read_text()
    assert message in " ".join(web_host.fail(command.format(container)).split())
    assert (web_host.state_dir / "overlay-web.json").read_text() == before
    assert web_host.devices() == {"lo", "under0", BRIDGE, VXLAN}
    assert devices_of(container) == {"lo"}


def test_an_address_that_is_taken_is_refused(
    host: Host, container: str, other_container: str
) -> None:
    host.succeed(CREATE, f"attach web --netns {container}")
    refusal = host.fail(f"attach web --netns {other_container} --ip 10.77.1.1")
    assert f"10.77.1.1 is taken by {container}" in refusal
    assert "detach web --ip 10.77.1.1" in refusal


def test_a_namespace_that_is_attached_gets_no_other_address(host: Host, container: str) -> None:
    host.succeed(CREATE, f"attach web --netns {container}")
    refusal = host.fail(f"attach web --netns {container} --ip 10.77.1.5")
    assert "the namespace is on overlay web already, with 10.77.1.1, fd77:0:0:1::1" in refusal


def test_a_namespace_with_an_address_on_the_network_is_refused(host: Host, container: str) -> None:
    ip(container, "link add eth7 type bridge")
    ip(container, "address add 10.77.9.9/24 dev eth7")
    host.succeed(CREATE)
    refusal = host.fail(f"attach web --netns {container}")
    assert "the namespace has the address 10.77.9.9 on 10.77.0.0/16 already" in refusal


def test_a_full_subnet_is_refused(host: Host, container: str, other_container: str) -> None:
    host.succeed(
        "create web --network 10.77.0.0/16 --subnet 10.77.1.4/32 --underlay 192.168.77.1",
        f"attach web --netns {container}",
    )
    assert "all addresses of 10.77.1.4/32 are taken" in host.fail(
        f"attach web --netns {other_container}"
    )


def test_an_overlay_with_containers_is_deleted_only_by_force(host: Host, container: str) -> None:
    host.succeed(CREATE, f"attach web --netns {container}")
    assert "overlay web has 1 containers attached" in host.fail("delete web")
    assert "eth0" in devices_of(container)


def test_a_failure_half_way_leaves_nothing(host: Host, container: str) -> None:
    host.succeed(CREATE)
    # The veth pair is there and has its IPv4 address when the IPv6 one is refused.
    run_inside(container, "sysctl", "-qw", "net.ipv6.conf.default.disable_ipv6=1")
    before = (host.state_dir / "overlay-web.json").read_text()
    refusal = host.fail(f"attach web --netns {container}")
    assert "cannot give eth0 the address fd77:0:0:1::1" in refusal
    assert "IPv6 is off there" in refusal
    assert devices_of(container) == {"lo"}
    assert host.devices() == {"lo", "under0", BRIDGE, VXLAN}
    assert (host.state_dir / "overlay-web.json").read_text() == before


def test_attaching_heals_what_a_killed_command_left(host: Host, container: str) -> None:
    host.succeed(CREATE, f"attach web --netns {container}")
    (port,) = _ports(host)
    # As killed between making the device and giving it to the bridge.
    ip(host.netns, f"link set {port} nomaster")
    ip(container, "address flush dev eth0")

    host.succeed(f"attach web --netns {container} --ip 10.77.1.1 --ip6 fd77:0:0:1::1")

    assert addresses_of(container, "eth0") == {"10.77.1.1/16", "fd77:0:0:1::1/48"}
    assert device_of(host.netns, port)["master"] == BRIDGE


def test_without_privilege_creating_is_refused_and_leaves_nothing(
    host: Host, tmp_path: Path
) -> None:
    arguments = ["overlay", "--state-dir", str(tmp_path / "unprivileged"), *CREATE.split()]
    unprivileged = ["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin"]
    slimctl = [sys.executable, "-m", "slim.broker.cli.main", *arguments]
    done = subprocess.run(
        inside(host.netns, *unprivileged, *slimctl),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 1
    assert f"slimctl: cannot make the bridge {BRIDGE}: Operation not permitted" in done.stderr
    assert "CAP_NET_ADMIN" in done.stderr
    assert list((tmp_path / "unprivileged").iterdir()) == []


def _ports(host: Host) -> list[str]:
    return sorted(name for name in host.devices() if name.startswith("sc-"))


def _forwarding(host: Host) -> str:
    """The VXLAN device's own table; its entries name hosts of the underlay."""
    return run_inside(host.netns, "bridge", "fdb", "show", "dev", VXLAN)


def _flood_list(host: Host) -> set[str]:
    words = [line.split() for line in _forwarding(host).splitlines()]
    return {line[line.index("dst") + 1] for line in words if line[0] == "00:00:00:00:00:00"}
