"""The fixtures of the compatibility tests: everything runs natively, the oracle, and under Slim.

    hosts (package) -> residents (package) -> client, server, stranger, pair, both

One pair of hosts serves all tests of this directory. `client` and `server`: the brokered
workloads; `stranger`: one that no slimd hears of. `pair`: client and greeting server, natively
and brokered, over IPv4 and IPv6: a test that asks for it runs four times, with the same demands.
`both`: native and brokered pair at once, for tests that compare what the two show.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from typing import TYPE_CHECKING

import pytest

from support.pairs import ANYWHERE, CONTENDERS, GREETING_PORT, Both, Pair
from support.probes import peers
from support.programs import build
from support.residents import Resident
from support.two_hosts import TwoHosts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Residents = dict[str, tuple[Resident, Resident]]

_ports = itertools.count(10_000, 10)


@pytest.fixture(scope="package")
def hosts() -> Iterator[TwoHosts]:
    """Two hosts, each with a slimd."""
    with TwoHosts() as two_hosts:
        yield two_hosts


@pytest.fixture(scope="package")
def residents(hosts: TwoHosts) -> Iterator[Residents]:
    """Client and server of each contender, with greeting servers."""
    places = {
        "native": (hosts.plain("a", "native-client"), hosts.plain("b", "native-server")),
        "brokered": (
            hosts.workload("a", "client", app="client"),
            hosts.workload("b", "server", app="server"),
        ),
    }
    with contextlib.ExitStack() as stack:
        found = {}
        for contender, (near, far) in places.items():
            at = tuple(
                stack.enter_context(Resident(each, hosts.directory(f"{contender}-resident")))
                for each in (near, far)
            )
            found[contender] = (at[0], at[1])
            for version, anywhere in ANYWHERE.items():
                at[1].probe(peers.greet_server, anywhere, GREETING_PORT + version).result()
        yield found


@pytest.fixture(scope="package")
def compiled(hosts: TwoHosts) -> Callable[[str, str], str]:
    """Gives the path of a C program of support/targets, compiled in a flavour (programs.py)."""
    directory = hosts.directory("compiled")

    @functools.cache
    def get(name: str, flavour: str) -> str:
        return str(build(directory, name, flavour))

    return get


@pytest.fixture
def quiet(residents: Residents) -> Iterator[Residents]:
    """What a test starts in the containers ends with it."""
    marks = [(each, each.running) for at in residents.values() for each in at]
    yield residents
    for each, mark in marks:
        each.stop_after(mark)


@pytest.fixture
def client(quiet: Residents) -> Resident:
    """A brokered workload on host a."""
    return quiet["brokered"][0]


@pytest.fixture
def server(quiet: Residents) -> Resident:
    """A brokered workload on host b, with greeting servers."""
    return quiet["brokered"][1]


@pytest.fixture
def stranger(quiet: Residents) -> Resident:
    """A container on host a that no slimd hears of."""
    return quiet["native"][0]


@pytest.fixture
def plain_server(quiet: Residents) -> Resident:
    """A container on host b that no slimd hears of, with greeting servers."""
    return quiet["native"][1]


@pytest.fixture(params=CONTENDERS)
def contender(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=[4, 6])
def version(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
def pair(quiet: Residents, contender: str, version: int) -> Pair:
    return _pair(quiet, contender, version)


@pytest.fixture
def both(quiet: Residents, version: int) -> Both:
    return Both(native=_pair(quiet, "native", version), brokered=_pair(quiet, "brokered", version))


@pytest.fixture
def port() -> int:
    """The first of ten that no other test has, so that none meets another's connections."""
    return next(_ports)


def _pair(residents: Residents, contender: str, version: int) -> Pair:
    near, far = residents[contender]
    return Pair(
        is_brokered=contender == "brokered",
        version=version,
        client=near,
        server=far,
        port=GREETING_PORT + version,
    )
