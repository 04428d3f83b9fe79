from __future__ import annotations

import re
from ipaddress import ip_address
from pathlib import Path

import pytest

from slim.broker.endpoints import Endpoint
from slim.broker.guard import layouts
from slim.broker.guard.layouts import Counter, Route, SocketFlag

HEADER = Path(__file__).resolve().parents[4] / "kmod" / "guard.h"


def test_the_version_of_the_layout_is_the_headers() -> None:
    assert f"#define SLIM_GUARD_LAYOUT {layouts.LAYOUT}\n" in HEADER.read_text()


def test_counters_are_those_of_the_header_in_its_order() -> None:
    listed = HEADER.read_text().partition("enum guard_counter {")[2].partition("GUARD_COUNTERS")[0]
    assert re.findall(r"\bGUARD_(\w+)", listed) == [which.name for which in Counter]


def test_flags_are_those_of_the_header() -> None:
    for flag in SocketFlag:
        assert re.search(rf"#define GUARD_{flag.name}\s+{flag.value}\b", HEADER.read_text())


def test_a_route_is_found_by_workload_and_destination() -> None:
    destination = Endpoint(ip_address("10.77.2.2"), 80)
    route = Route(
        workload=5,
        destination=destination,
        host=Endpoint(ip_address("192.0.2.2"), 20000),
        source=ip_address("10.77.1.1"),
        flow=1,
        peer=2,
        admit=True,
    )
    assert route.key() == layouts.route_key(5, destination)
    assert layouts.workload_of_route(route.key()) == 5
    assert layouts.route_key(6, destination) != route.key()
    assert (len(route.key()), len(route.value())) == layouts.SIZES["routes"]


def test_a_key_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="16 bytes, not 8"):
        layouts.opening_key(bytes(8), 1)
