"""The neighbours backend on real tables: a Flannel-like host, made in a namespace by a child."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_netns]

# As flanneld's vxlan backend sets it up: for each remote host a route to its subnet through the
# address of its device, the MAC of that, and where the MAC is.
SCENE = """
ip link set lo up
ip link add eth0 type veth peer name eth1
ip link set eth0 up
ip link set eth1 up
ip addr add 192.0.2.1/24 dev eth0
ip addr add 2001:db8::1/64 dev eth0 nodad
ip link add flannel.1 type vxlan id 1 dstport 4789 local 192.0.2.1 nolearning
ip link set flannel.1 up
ip addr add 10.42.1.0/32 dev flannel.1
ip route add 10.42.2.0/24 via 10.42.2.0 dev flannel.1 onlink
ip neigh add 10.42.2.0 lladdr 02:00:00:00:00:02 dev flannel.1 nud permanent
bridge fdb append 02:00:00:00:00:02 dev flannel.1 dst 192.0.2.2
ip route add 10.42.3.0/24 via 10.42.3.0 dev flannel.1 onlink
ip route add 10.42.4.0/24 via 10.42.4.0 dev flannel.1 onlink
ip neigh add 10.42.4.0 lladdr 02:00:00:00:00:04 dev flannel.1 nud permanent
bridge fdb append 00:00:00:00:00:00 dev flannel.1 dst 192.0.2.4
ip route add 10.42.5.0/24 dev flannel.1
ip neigh add 10.42.5.9 lladdr 02:00:00:00:00:05 dev flannel.1 nud permanent
bridge fdb append 02:00:00:00:00:05 dev flannel.1 dst 192.0.2.5
ip route add 10.42.6.0/24 via 192.0.2.6
ip link add flannel-v6.1 type vxlan id 1 dstport 4790 local 2001:db8::1 nolearning
ip link set flannel-v6.1 up
ip addr add fd42:1::/128 dev flannel-v6.1 nodad
ip route add fd42:2::/64 via fd42:2:: dev flannel-v6.1 onlink
ip neigh add fd42:2:: lladdr 02:00:00:00:06:02 dev flannel-v6.1 nud permanent
bridge fdb append 02:00:00:00:06:02 dev flannel-v6.1 dst 2001:db8::2
"""
ASK = """
import asyncio, json, subprocess, sys
from slim.broker.plugin_api import parse_address
from slim.plugins.discovery.neighbours import Neighbours
subprocess.run(["sh", "-ec", sys.argv[1]], check=True)

async def main():
    backend = Neighbours(7946)
    found = {}
    for text in sys.argv[3:]:
        located = await backend.locate(1, parse_address(text))
        found[text] = located and [located.host, str(located.control)]
    print(json.dumps(found))
    if sys.argv[2]:
        subprocess.run(["sh", "-ec", sys.argv[2]], check=True)
        located = await backend.locate(1, parse_address(sys.argv[3]))
        print(json.dumps(located and str(located.control)))

asyncio.run(main())
"""


def ask(*addresses: str, then: str = "") -> list[object]:
    done = subprocess.run(
        ["unshare", "--net", sys.executable, "-c", ASK, SCENE, then, *addresses],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=Path(__file__).parent,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_the_tables_name_the_host_behind_an_address_or_nobody() -> None:
    (found,) = ask(
        "10.42.2.7", "10.42.3.7", "10.42.4.7", "10.42.5.9", "10.42.6.7", "10.99.0.1", "fd42:2::7"
    )
    assert found == {
        "10.42.2.7": [None, "192.0.2.2:7946"],
        # No neighbour: the host has not been told of yet.
        "10.42.3.7": None,
        # Its MAC would be flooded.
        "10.42.4.7": None,
        # On the link itself, without a next hop.
        "10.42.5.9": [None, "192.0.2.5:7946"],
        # Not through a VXLAN device, and no way at all.
        "10.42.6.7": None,
        "10.99.0.1": None,
        "fd42:2::7": [None, "[2001:db8::2]:7946"],
    }


def test_what_moves_is_found_at_its_new_place_at_once() -> None:
    then = (
        "bridge fdb del 02:00:00:00:00:02 dev flannel.1 dst 192.0.2.2; "
        "bridge fdb append 02:00:00:00:00:02 dev flannel.1 dst 192.0.2.3"
    )
    assert ask("10.42.2.7", then=then) == [
        {"10.42.2.7": [None, "192.0.2.2:7946"]},
        "192.0.2.3:7946",
    ]


def test_without_the_device_nobody_is_named() -> None:
    assert ask("10.42.2.7", then="ip link del flannel.1")[1] is None
