"""How exactly the kernel keeps to rates, and slimd to quotas.

A short look with wide margins in the ordinary run; with SLIM_SOAK=1 (tox -e soak) ten seconds each,
within 5 percent. Figures are printed.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from support.policies import put_in_force
from support.probes import limited

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.two_hosts import TwoHosts, Workload

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_netns, pytest.mark.timeout(120)]

SOAK = os.environ.get("SLIM_SOAK", "") not in ("", "0")
SECONDS = 10.0 if SOAK else 1.0
RATES = {"50mbit": 6_250_000, "400mbit": 50_000_000} if SOAK else {"50mbit": 6_250_000}
ABOVE = 1.05 if SOAK else 1.3
# A busy machine may be slower than the limit; then it shows nothing.
BELOW = 0.95 if SOAK else 0.0
PORT = 8000
MIB = 1 << 20
HEADERS = 1448 / 1514
"""Payload of a full segment, with timestamps, in an Ethernet frame: HTB counts what is sent."""


@pytest.fixture
def talking(client: Workload, server: Workload, sink: Any) -> Iterator[Any]:
    running = client.probe(limited.talk, server.address4, PORT)
    assert running.result() == "connected"
    sink.result()
    yield running
    running.stop()


@pytest.fixture
def sink(server: Workload) -> Iterator[Any]:
    """Anew for each test: no probe runs for longer than a minute."""
    running = server.probe(limited.sink, "::", PORT)
    assert running.result() == "listening"
    yield running
    running.stop()


@pytest.fixture(autouse=True)
def as_it_was(hosts: TwoHosts) -> Iterator[None]:
    yield
    put_in_force(hosts, "a", "")


def limit(hosts: TwoHosts, table: str, line: str) -> None:
    selector = 'name = "r"\nlabels = {app = "client"}'
    put_in_force(hosts, "a", f"[[shaping.{table}]]\n{selector}\n{line}\n")


def check(name: str, seen: dict[str, float], rate: float) -> None:
    ratio = seen["bytes"] / seen["seconds"] / rate
    print(f"{name}: {ratio:.3f} of the limit over {seen['seconds']:.1f} s")
    assert BELOW <= ratio <= ABOVE
    assert seen["bytes"] > 0


def ask(talking: Any, what: str) -> Any:
    talking.tell(what)
    return talking.result()


@pytest.mark.parametrize("written", RATES)
def test_a_connection_sends_at_its_rate(hosts: TwoHosts, talking: Any, written: str) -> None:
    limit(hosts, "rule", f'send = "{written}"')
    check(f"send {written}", ask(talking, f"send {SECONDS}"), RATES[written])


@pytest.mark.parametrize("written", RATES)
def test_a_connection_receives_at_its_rate(
    hosts: TwoHosts, client: Workload, server: Workload, sink: Any, written: str
) -> None:
    limit(hosts, "rule", f'receive = "{written}"')
    talking = client.probe(limited.talk, server.address4, PORT)
    assert talking.result() == "connected"
    assert sink.result()["rate"] == RATES[written]
    seen = ask(talking, f"receive {int(RATES[written] * SECONDS)}")
    check(f"receive {written}", seen, RATES[written])
    talking.stop()


@pytest.mark.parametrize("written", RATES)
def test_a_workload_sends_at_its_rate(hosts: TwoHosts, talking: Any, written: str) -> None:
    limit(hosts, "container", f'send = "{written}"')
    check(f"workload {written}", ask(talking, f"send {SECONDS}"), RATES[written] * HEADERS)


@pytest.mark.skipif(not SOAK, reason="tests/netns/test_shaping_live.py has it, with less to send")
@pytest.mark.parametrize("rate", ["40mbit", "1gbit"])
def test_a_quota_ends_a_connection_in_time(hosts: TwoHosts, talking: Any, rate: str) -> None:
    """Within 1 MiB of the limit, or within a second, whatever comes first at that rate."""
    limit(hosts, "rule", f'quota = "64MiB"\nsend = "{rate}"')
    sent = ask(talking, "end sending")["bytes"] - 64 * MIB
    per_second = {"40mbit": 5_000_000, "1gbit": 125_000_000}[rate]
    print(f"quota at {rate}: {sent} bytes beyond it, {sent / per_second:.2f} s")
    assert 0 <= sent <= max(MIB, per_second)
