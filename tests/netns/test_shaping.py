"""Limits of connections: in force from the first byte, whoever asks, and told to the operator."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from support.probes import limited
from support.two_hosts import Settings, TwoHosts, Workload

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_netns]

PORT, PLAIN_PORT, RECEIVE_PORT, OVERLAY_PORT = 8000, 8001, 8002, 8003
UNPACED = (1 << 64) - 1
NEAR = f"""
[[shaping.rule]]
name = "out"
labels = {{app = "client"}}
ports = ["{PORT}"]
send = "8mbit"
dscp = "af21"
priority = 2

[[shaping.rule]]
name = "towards-me"
labels = {{app = "client"}}
ports = ["{RECEIVE_PORT}"]
receive = "8mbit"

[[shaping.rule]]
name = "over-the-overlay"
labels = {{app = "client"}}
ports = ["{OVERLAY_PORT}"]
send = "8mbit"
"""
FAR = f"""
[[shaping.rule]]
name = "towards-server"
labels = {{app = "server"}}
ports = ["{PORT}"]
receive = "4mbit"
"""


@pytest.fixture(scope="module")
def hosts() -> Iterator[TwoHosts]:
    with TwoHosts(Settings(more=NEAR), Settings(more=FAR)) as two_hosts:
        yield two_hosts


@pytest.fixture(scope="module")
def sinks(server: Workload) -> dict[int, Any]:
    running = {}
    for port in (PORT, PLAIN_PORT, RECEIVE_PORT):
        running[port] = server.probe(limited.sink, "::", port)
        assert running[port].result() == "listening"
    return running


def talk(client: Workload, server: Workload, version: int, port: int) -> Any:
    talking = client.probe(limited.talk, server.address(version), port)
    assert talking.result() == "connected"
    return talking


def ask(talking: Any, what: str) -> Any:
    talking.tell(what)
    return talking.result()


@pytest.mark.parametrize("version", [4, 6])
def test_the_lower_of_both_ends_limits_is_on_the_socket_that_sends(
    client: Workload, server: Workload, sinks: dict[int, Any], version: int
) -> None:
    talking = talk(client, server, version, PORT)
    options = ask(talking, "options")
    assert options["rate"] == 500_000
    assert options["priority"] == 2
    assert options["tos"] == 18 << 2
    if version == 6:
        assert options["tclass"] == 18 << 2
    assert sinks[PORT].result()["rate"] == UNPACED
    talking.stop()


def test_what_is_received_is_limited_where_it_is_sent(
    client: Workload, server: Workload, sinks: dict[int, Any]
) -> None:
    talking = talk(client, server, 4, RECEIVE_PORT)
    assert ask(talking, "options")["rate"] == UNPACED
    assert sinks[RECEIVE_PORT].result()["rate"] == 1_000_000
    talking.stop()


def test_no_more_gets_through_than_the_limit(
    client: Workload, server: Workload, sinks: dict[int, Any]
) -> None:
    talking = talk(client, server, 4, PORT)
    sinks[PORT].result()
    sent = ask(talking, "send 1.5")
    assert 0 < sent["bytes"] <= 500_000 * sent["seconds"] * 1.3 + 65_536
    talking.stop()


@pytest.mark.parametrize("version", [4, 6])
def test_a_program_cannot_undo_its_limits(
    client: Workload, server: Workload, sinks: dict[int, Any], version: int
) -> None:
    talking = talk(client, server, version, PORT)
    before = ask(talking, "options")
    after = ask(talking, "undo")
    assert after["errors"] == {}
    assert after["options"] == {**before, "congestion": "reno"}
    sinks[PORT].result()
    # Another congestion control keeps to the rate, too.
    sent = ask(talking, "send 1")
    assert 0 < sent["bytes"] <= 500_000 * sent["seconds"] * 1.3 + 65_536
    talking.stop()


def test_a_limit_holds_on_the_overlay(client: Workload, server: Workload) -> None:
    """Nobody brokers the listener: the connection falls back, with its limits."""
    plain = server.plain()
    sink = plain.probe(limited.sink, "0.0.0.0", OVERLAY_PORT)
    assert sink.result() == "listening"
    talking = talk(client, server, 4, OVERLAY_PORT)
    assert ask(talking, "options")["rate"] == 1_000_000
    assert ask(talking, "undo")["options"]["rate"] == 1_000_000
    talking.stop()


def test_what_is_not_limited_is_set_as_asked(
    client: Workload, server: Workload, sinks: dict[int, Any]
) -> None:
    """In a workload whose filter traps these options."""
    talking = talk(client, server, 6, PLAIN_PORT)
    after = ask(talking, "undo")
    assert after["errors"] == {}
    wanted = {"rate": UNPACED, "priority": 5, "tos": 0x10, "tclass": 0x10, "congestion": "reno"}
    # IP_TOS has the kernel choose a priority (ip(7)).
    assert {**after["options"], "priority": 5} == wanted
    sinks[PLAIN_PORT].result()
    talking.stop()


def test_a_port_without_a_rule_is_not_limited(
    client: Workload, server: Workload, sinks: dict[int, Any]
) -> None:
    talking = talk(client, server, 4, PLAIN_PORT)
    options = ask(talking, "options")
    assert (options["rate"], options["priority"], options["tos"]) == (UNPACED, 0, 0)
    assert sinks[PLAIN_PORT].result()["rate"] == UNPACED
    talking.stop()
