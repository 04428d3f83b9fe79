"""slimd's processes are killed at random instants under load: no call fails, none hangs.

Fifteen kills in the ordinary run, two hundred with SLIM_SOAK=1 (tox -e soak). The seed is printed;
SLIM_SEED repeats one.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from support.crashes import is_running, wait_until_whole
from support.polling import eventually
from support.probes import enduring

if TYPE_CHECKING:
    from support.two_hosts import TwoHosts, Workload

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_netns]

SOAK = os.environ.get("SLIM_SOAK", "") not in ("", "0")
KILLS = 200 if SOAK else 15
PORT = 8100
THREADS = 4
TARGETS = [
    ("traps",),
    ("control",),
    ("traps", "control"),
]
LOST = {
    f"{kind} greeting {how}"
    for kind in ("blocking", "polled", "lasting")
    for how in ("ECONNRESET", "closed")
}
"""How the client of a connection sees that traps was killed with it in hand, inside an accept."""


@pytest.mark.timeout(3600)
def test_killing_slimd_at_random_instants_fails_no_call(
    hosts: TwoHosts, client: Workload, server: Workload
) -> None:
    seed = int(os.environ.get("SLIM_SEED") or random.randrange(1 << 32))
    print(f"\nseed {seed}")
    chance = random.Random(seed)
    serving = server.probe(enduring.serve, PORT, THREADS)
    assert serving.result() == "started"
    load = client.probe(enduring.load, server.address4, PORT, THREADS, client.address4)
    assert load.result() == "started"
    killed: Counter[str] = Counter()
    while killed.total() < KILLS:
        for host in ("a", "b"):
            wait_until_whole(hosts, host)
        time.sleep(chance.uniform(0, 0.5))
        roles = chance.choice(TARGETS)
        where = chance.choice([("a",), ("b",), ("a", "b")])
        kill_at_once(hosts, [(role, host) for role in roles for host in where])
        killed.update(f"{role} {host}" for role in roles for host in where)
    for host in ("a", "b"):
        wait_until_whole(hosts, host)
    before = outcome(load, "how")["done"]
    kinds = {"blocking", "polled", "listened", "lasting"}

    def goes_on() -> bool:
        done = outcome(load, "how")["done"]
        return all(done[kind] > before[kind] for kind in kinds)

    eventually(goes_on, f"every kind of exchange goes on from {outcome(load, 'how')}", 10)
    seen, served = outcome(load, "stop"), outcome(serving, "stop")
    print(f"killed: {dict(killed)}; {seen['done']}; failed: {seen['failed']}")
    assert (seen["wrong"], seen["stuck"]) == ([], [])
    assert served["failed"] == {}
    assert set(seen["failed"]) <= LOST
    assert sum(seen["failed"].values()) <= killed["traps b"]


def outcome(running: Any, word: str) -> dict[str, Any]:
    running.tell(word)
    seen: dict[str, Any] = running.result()
    return seen


def kill_at_once(hosts: TwoHosts, victims: list[tuple[str, str]]) -> None:
    """SIGKILL to each; control is started again, as a service manager would."""
    # It is control that tells process ids.
    pids = [hosts.pid(host, role) for role, host in victims]
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    eventually(lambda: not any(map(is_running, pids)), f"all of {victims} are gone")
    for role, host in victims:
        if role == "control":
            hosts.start_slimd(host)
