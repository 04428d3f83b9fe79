"""The fixtures of the end-to-end tests.

    hosts (module) -> client, server (module)

`hosts`: two hosts with slimd; a module that wants other settings defines its own. `client` is a
workload on host a, `server` one on host b.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

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
