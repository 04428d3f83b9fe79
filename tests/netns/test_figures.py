"""Figures that slimctl shows of connections, against those of ss(8) for the same sockets."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest
from lab.commands import run

from slim.broker.admin import client as admin_client
from slim.broker.admin import messages
from slim.broker.admin.mirror import Mirror
from support.polling import eventually
from support.probes import peers
from support.two_hosts import BIN

if TYPE_CHECKING:
    from support.two_hosts import TwoHosts, Workload

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_netns, pytest.mark.needs_program("ss")]

ECHOED = 300_000
FIELDS = ("bytes_acked", "bytes_received", "retransmits")


def by_ss(netns: str, port: int) -> dict[str, int]:
    """Of the one socket that is connected to that port."""
    text = run(
        "ip", "netns", "exec", netns, "ss", "-Htino", "state", "established", f"dport = :{port}"
    )
    lines = text.splitlines()
    assert len(lines) == 2, text

    def number(key: str) -> int:
        found = re.search(rf"\b{key}:(?:\d+/)?(\d+)", lines[1])
        return int(found[1]) if found else 0

    return {
        "bytes_acked": number("bytes_acked"),
        "bytes_received": number("bytes_received"),
        "retransmits": number("retrans"),
        "rtt_us": round(float(re.search(r"\brtt:([\d.]+)/", lines[1])[1]) * 1000),  # type: ignore[index]
    }


def by_slimctl(hosts: TwoHosts, path: str) -> dict[str, Any]:
    slimctl = (str(BIN / "slimctl"), "--run-dir", str(hosts.run_dir("a")))
    text = run(*slimctl, "connections", "--json", "dir:out", f"path:{path}", "state:estab")
    (row,) = json.loads(text)["connections"]
    return dict(row)


@pytest.mark.parametrize(("path", "port"), [("fast", 8000), ("fallback", 8001)])
def test_figures_are_those_of_ss(
    hosts: TwoHosts, client: Workload, server: Workload, path: str, port: int
) -> None:
    listening = server if path == "fast" else server.plain()
    greeter = listening.probe(peers.greet_server, "0.0.0.0", port)
    greeter.result()
    talking = client.probe(peers.stay, server.address4, port, ECHOED)
    talking.result()
    talking.tell("echo")
    assert talking.result() == ECHOED

    row = by_slimctl(hosts, path)
    if path == "fast":
        seen = by_ss(hosts.host("a").netns, int(row["host_peer"].rpartition(":")[2]))
    else:
        seen = by_ss(client.netns, port)
    assert {name: row[name] for name in FIELDS} == {name: seen[name] for name in FIELDS}
    assert row["bytes_acked"] >= ECHOED
    assert row["bytes_received"] >= ECHOED
    assert abs(row["rtt_ms"] * 1000 - seen["rtt_us"]) <= 1
    assert row["peer_host"] == ("b" if path == "fast" else "")
    talking.stop()
    greeter.stop()


def test_changes_add_up_to_what_the_program_sent(
    hosts: TwoHosts, client: Workload, server: Workload
) -> None:
    """A mirror that is told of changes only has what a fresh one is told."""
    port = 8002
    greeter = server.probe(peers.greet_server, "0.0.0.0", port)
    greeter.result()
    mirror = Mirror()

    def ask() -> messages.Changes:
        answer = admin_client.ask(hosts.run_dir("a"), mirror.request(), messages.Changes)
        mirror.update(answer)
        return answer

    assert ask().is_whole
    talking = client.probe(peers.stay, server.address4, port, ECHOED)
    talking.result()

    def found() -> list[int]:
        ask()
        return [
            cookie
            for cookie, row in mirror.rows.items()
            if row.overlay_peer == f"{server.address4}:{port}" and row.state == "estab"
        ]

    eventually(found, "the connection is told as a change")
    (cookie,) = found()
    talking.tell("echo")
    assert talking.result() == ECHOED

    def acked() -> int:
        ask()
        return mirror.whole(cookie).bytes_acked

    eventually(lambda: acked() >= ECHOED, "its bytes are told as a change")
    assert not ask().is_whole
    whole = mirror.whole(cookie, now=0.0)
    fresh = Mirror()
    fresh.update(admin_client.ask(hosts.run_dir("a"), fresh.request(), messages.Changes))
    assert fresh.whole(cookie, now=0.0) == whole
    talking.stop()
    eventually(lambda: not found(), "its end is told as a change")
    greeter.stop()
