"""Limits of a runtime's container: its profile traps what could undo them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from support.oci import OciRuntime, oci_runtime
from support.probes import limited
from support.two_hosts import Settings, TwoHosts, Workload

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [
    pytest.mark.needs_root,
    pytest.mark.needs_netns,
    pytest.mark.needs_program("runc", "crun"),
]

PORT = 8000
RATE = 1_000_000
RULE = f"""
[[shaping.rule]]
name = "out"
labels = {{app = "client"}}
ports = ["{PORT}"]
send = "8mbit"
dscp = "af21"
priority = 2
"""


@pytest.fixture(scope="module")
def hosts() -> Iterator[TwoHosts]:
    with TwoHosts(Settings(more=RULE), Settings()) as two_hosts:
        yield two_hosts


@pytest.fixture(scope="module", params=["runc", "crun"])
def runtime(hosts: TwoHosts, request: pytest.FixtureRequest) -> Iterator[OciRuntime]:
    with oci_runtime(hosts, "a", request.param) as runtime:
        yield runtime


def ask(talking: Any, what: str) -> Any:
    talking.tell(what)
    return talking.result()


def test_a_container_cannot_undo_its_limits(runtime: OciRuntime, server: Workload) -> None:
    contained = runtime.start(
        "limited", runtime.new_network(), annotations={"slim.label.app": "client"}
    )
    sink = server.probe(limited.sink, "0.0.0.0", PORT)
    assert sink.result() == "listening"
    talking = contained.probe(limited.talk, server.address4, PORT)
    assert talking.result() == "connected"
    before = ask(talking, "options")
    assert before["rate"] == RATE
    after = ask(talking, "undo")
    assert after["errors"] == {}
    assert after["options"] == {**before, "congestion": "reno"}
    talking.stop()
    sink.stop()
