"""What a container on the built-in overlay cannot send: frames in the name of somebody else."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from support import frames
from support.frames import Sender
from support.overlay_hosts import Host, device_of, inside, namespace, run_inside, send, two_hosts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = [
    pytest.mark.needs_root,
    pytest.mark.needs_netns,
    pytest.mark.needs_program("nft"),
]

BOTH = "--network 10.77.0.0/16 --network6 fd77::/48"
FIRST = f"create web {BOTH} --subnet 10.77.1.0/24 --subnet6 fd77:0:0:1::/64 --underlay 192.168.77.1"
SECOND = (
    f"create web {BOTH} --subnet 10.77.2.0/24 --subnet6 fd77:0:0:2::/64 --underlay 192.168.77.2"
)
TABLE = "slim-sb-web"
OTHER_MAC = "02:aa:bb:cc:dd:ee"
OTHER4, OTHER6 = "10.77.1.77", "fd77:0:0:1::77"
MARKER = "slim-marker-{}-end"

# Prints "ready", then the numbers of the markers that arrive until the last one does.
_LISTEN = """
import re, socket, sys
sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
sock.bind(("eth0", 0))
sock.settimeout(20)
print("ready", flush=True)
seen, last = [], int(sys.argv[1])
while last not in seen:
    found = re.search(rb"slim-marker-([0-9]+)-end", sock.recv(4096))
    if found:
        seen.append(int(found[1]))
print(sorted(set(seen)))
"""

_SEND = """
import json, socket, sys
sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
sock.bind(("eth0", 0))
for frame in json.load(sys.stdin):
    sock.send(bytes.fromhex(frame))
"""

_CONNECT = """
import errno, socket, sys
try:
    socket.create_connection((sys.argv[1], 9), timeout=2, source_address=(sys.argv[2], 0))
except TimeoutError:
    print("nothing")
except OSError as error:
    print(errno.errorcode[error.errno])
"""


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Host, Host]]:
    with two_hosts(tmp_path_factory.mktemp("hosts")) as hosts:
        hosts[0].succeed(FIRST, "join web --peer 192.168.77.2")
        hosts[1].succeed(SECOND, "join web --peer 192.168.77.1")
        yield hosts


@pytest.fixture(scope="module")
def attacker(hosts: tuple[Host, Host]) -> Iterator[str]:
    with namespace() as name:
        hosts[0].succeed(f"attach web --netns {name}")
        yield name


@pytest.fixture(scope="module", params=["same host", "other host"])
def victim(
    hosts: tuple[Host, Host], attacker: str, request: pytest.FixtureRequest
) -> Iterator[str]:
    """After the attacker, so that the latter has the first addresses."""
    with namespace() as name:
        hosts[request.param == "other host"].succeed(f"attach web --netns {name}")
        yield name


@pytest.fixture
def own(attacker: str) -> Sender:
    mac = device_of(attacker, "eth0")["address"]
    return Sender(mac, "10.77.1.1", "fd77:0:0:1::1")


def arriving(attacker: str, victim: str, sent: list[bytes]) -> list[int]:
    """Which of the frames, each with the marker of its number, the victim sees; not the last."""
    watching = subprocess.Popen(
        inside(victim, sys.executable, "-c", _LISTEN, str(len(sent) - 1)),
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert watching.stdout is not None
        assert watching.stdout.readline() == "ready\n"
        listed = json.dumps([frame.hex() for frame in sent])
        run_inside(attacker, sys.executable, "-c", _SEND, input_text=listed)
        seen: list[int] = json.loads(watching.stdout.readline())
        assert watching.wait(10) == 0
    finally:
        watching.kill()
        watching.communicate()
    return [number for number in seen if number != len(sent) - 1]


def marked(number: int) -> bytes:
    return MARKER.format(number).encode()


def forged(own: Sender) -> list[bytes]:
    """In the name of others; the last one is the sender's own."""
    makers: list[Callable[[bytes], bytes]] = [
        lambda end: frames.udp4(own.mac, OTHER4, end),
        lambda end: frames.udp4(OTHER_MAC, own.address4, end),
        lambda end: frames.udp4(own.mac, "0.0.0.0", end),
        lambda end: frames.udp6(own.mac, OTHER6, end),
        lambda end: frames.udp6(OTHER_MAC, own.address6, end),
        lambda end: frames.udp6(own.mac, "fe80::1", end),
        lambda end: frames.udp6(own.mac, "::", end),
        lambda end: frames.arp(own.mac, frames.ARP_REPLY, own.mac, OTHER4, end),
        lambda end: frames.arp(own.mac, frames.ARP_REQUEST, own.mac, OTHER4, end),
        lambda end: frames.arp(own.mac, frames.ARP_REPLY, OTHER_MAC, own.address4, end),
        lambda end: frames.arp(own.mac, frames.ARP_REPLY, own.mac, "0.0.0.0", end),
        lambda end: frames.arp(OTHER_MAC, frames.ARP_REPLY, OTHER_MAC, OTHER4, end),
        lambda end: frames.icmp6(own.mac, own.address6, frames.NEIGHBOR_ADVERT, OTHER6, end),
        lambda end: frames.icmp6(own.mac, own.link_local, frames.NEIGHBOR_ADVERT, "fe80::1", end),
        lambda end: frames.icmp6(own.mac, OTHER6, frames.NEIGHBOR_SOLICIT, own.address6, end),
        lambda end: frames.icmp6(own.mac, own.link_local, frames.ROUTER_ADVERT, "::", end),
        lambda end: frames.icmp6(own.mac, own.link_local, frames.REDIRECT, OTHER6, end),
        lambda end: frames.vlan(own.mac, frames.udp4(own.mac, OTHER4, end)),
        lambda end: frames.udp4(own.mac, own.address4, end),
    ]
    return [make(marked(number)) for number, make in enumerate(makers)]


def lawful(own: Sender) -> list[bytes]:
    makers: list[Callable[[bytes], bytes]] = [
        lambda end: frames.udp4(own.mac, own.address4, end),
        lambda end: frames.udp6(own.mac, own.address6, end),
        lambda end: frames.udp6(own.mac, own.link_local, end),
        lambda end: frames.arp(own.mac, frames.ARP_REQUEST, own.mac, own.address4, end),
        lambda end: frames.arp(own.mac, frames.ARP_REPLY, own.mac, own.address4, end),
        lambda end: frames.arp(own.mac, frames.ARP_REQUEST, own.mac, "0.0.0.0", end),
        lambda end: frames.icmp6(own.mac, own.address6, frames.NEIGHBOR_SOLICIT, OTHER6, end),
        lambda end: frames.icmp6(own.mac, "::", frames.NEIGHBOR_SOLICIT, own.address6, end),
        lambda end: frames.icmp6(own.mac, own.address6, frames.NEIGHBOR_ADVERT, own.address6, end),
        lambda end: frames.icmp6(
            own.mac, own.link_local, frames.NEIGHBOR_ADVERT, own.link_local, end
        ),
        lambda end: frames.udp4(own.mac, own.address4, end),
    ]
    return [make(marked(number)) for number, make in enumerate(makers)]


def test_what_is_its_own_arrives(attacker: str, victim: str, own: Sender) -> None:
    sent = lawful(own)
    assert arriving(attacker, victim, sent) == [*range(len(sent) - 1)]


def test_frames_in_the_name_of_others_do_not_arrive(
    hosts: tuple[Host, Host], attacker: str, victim: str, own: Sender
) -> None:
    sent = forged(own)
    assert arriving(attacker, victim, sent) == []
    try:
        # Without the guard each of them does.
        run_inside(hosts[0].netns, "nft", "delete", "table", "bridge", TABLE)
        assert arriving(attacker, victim, sent) == [*range(len(sent) - 1)]
    finally:
        # The same overlay again: what a firewall took away is restored.
        hosts[0].succeed(FIRST)
    assert arriving(attacker, victim, sent) == []


def test_an_address_that_it_gives_itself_is_of_no_use(attacker: str, victim: str) -> None:
    shown = run_inside(victim, "ip", "-4", "-br", "address", "show", "eth0").split()
    target = shown[2].partition("/")[0]
    run_inside(attacker, "ip", "address", "add", f"{OTHER4}/16", "dev", "eth0")
    try:
        # Nobody listens: an answer is a refusal.
        assert run_inside(attacker, sys.executable, "-c", _CONNECT, target, "") == "ECONNREFUSED\n"
        assert run_inside(attacker, sys.executable, "-c", _CONNECT, target, OTHER4) == "nothing\n"
    finally:
        run_inside(attacker, "ip", "address", "del", f"{OTHER4}/16", "dev", "eth0")


def test_connections_of_both_families_are_as_before(attacker: str, victim: str) -> None:
    for family in ("-4", "-6"):
        shown = run_inside(victim, "ip", family, "-br", "address", "show", "dev", "eth0").split()
        address = next(word for word in shown[2:] if not word.startswith("fe80")).partition("/")[0]
        assert send(attacker, victim, address).endswith(" 200000")


def test_detach_and_delete_take_the_rules_away(tmp_path_factory: pytest.TempPathFactory) -> None:
    with two_hosts(tmp_path_factory.mktemp("other")) as (host, _), namespace() as name:
        host.succeed(FIRST, f"attach web --netns {name}")

        def rules() -> str:
            return run_inside(host.netns, "nft", "list", "ruleset")

        assert "10.77.1.1" in rules()
        host.succeed(f"detach web --netns {name}")
        assert "10.77.1.1" not in rules()
        host.succeed("delete web")
        assert rules() == ""
