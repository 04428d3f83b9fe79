"""python -m bench.policy: what a verdict costs under very many policies, and what a change costs.

No network and no root. The plugin is asked as slimd asks it, about fresh and about known workloads:
the first verdict about one makes what later ones find ready. slimd keeps flows, so a program pays
for a verdict once per flow and lifetime, not per connection.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from typing import TYPE_CHECKING

import msgspec

from slim.broker.plugin_api import Direction, FlowRequest, Identity, parse_address
from slim.plugins.policy.networkpolicy.compiler import compile_resources
from slim.plugins.policy.networkpolicy.loading import read_text
from slim.plugins.policy.networkpolicy.model import NAMESPACE_NAME_LABEL
from slim.plugins.policy.networkpolicy.plugin import Plugin

if TYPE_CHECKING:
    from collections.abc import Iterable

    from slim.plugins.policy.networkpolicy.compiler import Compiled
    from slim.plugins.policy.networkpolicy.model import Resource

POLICIES = 10_000
CONTAINERS = 10_000
QUESTIONS = 20_000
BAR_US = 20.0
PORT = 8080
SEED = 1


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.policy",
        description="Measure verdicts and recompilation of the networkpolicy plugin.",
        epilog=f"exit status: 0; 1 if the median verdict takes over {BAR_US:.0f} us.",
    )
    parser.add_argument("--policies", type=int, default=POLICIES)
    parser.add_argument("--containers", type=int, default=CONTAINERS)
    options = parser.parse_args()
    print(f"{options.policies} policies, {options.containers} containers; microseconds a verdict")
    print("namespaces    first   median      p99    compile     change")
    worst = max(
        measure(options.policies, options.containers, namespaces) for namespaces in (1, 100, 1000)
    )
    print(f"the bar, a median of {BAR_US:.0f} us, {'holds' if worst <= BAR_US else 'fails'}")
    return 0 if worst <= BAR_US else 1


def measure(policies: int, containers: int, namespaces: int) -> float:
    """Print one line; gives the median of known workloads."""
    documents = [document(number, namespaces) for number in range(policies)]
    began = time.perf_counter()
    compiled = compile_documents(documents)
    compile_s = time.perf_counter() - began
    plugin = Plugin.of(compiled)
    generator = random.Random(SEED)
    workloads = [workload(number, namespaces) for number in range(containers)]
    first = median_us(plugin, [request(each, each, 0) for each in workloads])
    pairs = [
        request(generator.choice(workloads), generator.choice(workloads), number)
        for number in range(QUESTIONS)
    ]
    times = sorted(time_each(plugin, pairs))
    known = statistics.median(times)
    p99 = times[int(len(times) * 0.99)]

    documents[policies // 2] = document(policies // 2, namespaces, port=PORT + 1)
    resources = resources_of(documents)
    began = time.perf_counter()
    changed = compile_resources(resources, compiled)
    change_s = time.perf_counter() - began
    assert changed.units.compiled == 1, "one policy changed, and more than its namespace was made"
    print(
        f"{namespaces:>10}  {first:>7.1f}  {known:>7.1f}  {p99:>7.1f}  {compile_s:>7.2f} s  "
        f"{change_s:>7.3f} s",
        flush=True,
    )
    return known


def document(number: int, namespaces: int, port: int = PORT) -> bytes:
    """A policy of every fourth kind: by label, by namespace, by block, for all."""
    team, peer = f"team-{number}", f"team-{(number * 7) % POLICIES}"
    peers = (
        {"podSelector": {"matchLabels": {"team": peer}}},
        {"namespaceSelector": {"matchLabels": {NAMESPACE_NAME_LABEL: f"ns-{number % 17}"}}},
        {"ipBlock": {"cidr": f"10.{number % 200}.0.0/16", "except": [f"10.{number % 200}.9.0/24"]}},
        {"podSelector": {"matchExpressions": [{"key": "team", "operator": "Exists"}]}},
    )
    rule = {"from": [peers[number % 4]], "ports": [{"port": port}]}
    spec = {"podSelector": {"matchLabels": {"team": team}}, "ingress": [rule]}
    metadata = {"name": f"policy-{number}", "namespace": f"ns-{number % namespaces}"}
    kind = {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy"}
    return msgspec.json.encode({**kind, "metadata": metadata, "spec": spec})


def workload(number: int, namespaces: int) -> tuple[Identity, str]:
    labels = {"team": f"team-{number}", "pod": f"pod-{number}"}
    address = f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"
    return Identity(f"pod-{number}", f"ns-{number % namespaces}", labels), address


def resources_of(documents: Iterable[bytes]) -> list[Resource]:
    return [
        each
        for number, text in enumerate(documents)
        for each in read_text(f"{number}.json", text).resources
    ]


def compile_documents(documents: Iterable[bytes]) -> Compiled:
    return compile_resources(resources_of(documents))


def request(
    source: tuple[Identity, str], destination: tuple[Identity, str], number: int
) -> FlowRequest:
    return FlowRequest(
        direction=Direction.INGRESS if number % 2 else Direction.EGRESS,
        source=source[0],
        source_address=parse_address(source[1]),
        destination=destination[0],
        destination_address=parse_address("10.255.0.1"),
        port=PORT,
    )


def time_each(plugin: Plugin, requests: Iterable[FlowRequest]) -> list[float]:
    times = []
    for each in requests:
        began = time.perf_counter()
        plugin.slim_decide(each)
        times.append((time.perf_counter() - began) * 1e6)
    return times


def median_us(plugin: Plugin, requests: Iterable[FlowRequest]) -> float:
    return statistics.median(time_each(plugin, requests))


if __name__ == "__main__":
    sys.exit(main())
