"""The fixtures of the end-to-end tests.

    hosts (module) -> client, server (module) -> places (module) -> pair

`hosts`: two hosts with slimd; a module that wants other settings defines its own. `client` is a
workload on host a, `server` one on host b. `pair`: client and greeting server, natively and
brokered, over IPv4 and IPv6: a test that asks for it runs four times.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support.pairs import ANYWHERE, CONTENDERS, GREETING_PORT, Pair
from support.probes import peers
from support.two_hosts import TwoHosts, Workload

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def hosts() -> Iterator[TwoHosts]:
    """Two hosts, each with a slimd, for all tests of a module."""
    with TwoHosts() as two_hosts:
        yield two_hosts


@pytest.fixture(scope="module")
def client(hosts: TwoHosts) -> Workload:
    """A workload on host a."""
    return hosts.workload("a", "client", app="client")


@pytest.fixture(scope="module")
def server(hosts: TwoHosts) -> Workload:
    """A workload on host b."""
    return hosts.workload("b", "server", app="server")


@pytest.fixture(scope="module")
def places(
    hosts: TwoHosts, client: Workload, server: Workload
) -> dict[str, tuple[Workload, Workload]]:
    found = {"native": (hosts.plain("a"), hosts.plain("b")), "brokered": (client, server)}
    for _, at in found.values():
        for version, anywhere in ANYWHERE.items():
            at.probe(peers.greet_server, anywhere, GREETING_PORT + version).result()
    return found


@pytest.fixture(params=CONTENDERS)
def contender(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=[4, 6])
def version(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
def pair(places: dict[str, tuple[Workload, Workload]], contender: str, version: int) -> Pair:
    near, far = places[contender]
    return Pair(
        is_brokered=contender == "brokered",
        client=near,
        server=far,
        address=far.address(version),
        anywhere=ANYWHERE[version],
        port=GREETING_PORT + version,
    )
