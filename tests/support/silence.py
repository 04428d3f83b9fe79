"""A server that was reached a moment ago and answers nothing now, natively and under Slim."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING

from support.firewall import filtering
from support.probes import peers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.pairs import Pair
    from support.two_hosts import TwoHosts


@contextlib.contextmanager
def silence(hosts: TwoHosts, pair: Pair, port: int) -> Iterator[Pair]:
    """A greeting server of its own on that port, whose handshakes get no answer.

    Under Slim it is the host's path that is silent, after it was found good; and it is this
    listener's path only, so that other tests do not find theirs backed off.
    """
    silent = replace(pair, port=port)
    silent.serve(peers.greet_server, port).result()
    silent.call(peers.visit)
    with contextlib.ExitStack() as stack:
        if pair.is_brokered:
            (listener,) = (
                row
                for row in hosts.rows("b", "listen")
                if row.workload == pair.server.name and row.overlay_local.endswith(f":{port}")
            )
            host_port = listener.host_local.rpartition(":")[2]
            rule = f'iifname "eth0" tcp dport {host_port} drop'
            stack.enter_context(filtering(hosts.host("b").netns, rule))
        else:
            stack.enter_context(filtering(pair.server.netns, f"tcp dport {port} drop"))
        yield silent
