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
            rule = 'iifname "eth0" tcp dport 20000-29999 drop'
            stack.enter_context(filtering(hosts.host("b").netns, rule))
        else:
            stack.enter_context(filtering(pair.server.netns, f"tcp dport {port} drop"))
        yield silent
