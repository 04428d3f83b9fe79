"""One host's guard: clamps, what getsockopt shows, taking over, cleaning up."""

from __future__ import annotations

import os
import signal
import socket
from typing import TYPE_CHECKING

import pytest

from slim.broker.errors import SlimError
from slim.broker.guard import cleanup
from slim.broker.guard.cleanup import clean_up
from slim.broker.guard.layouts import Shaping
from slim.broker.guard.places import find_places
from support import guard_calls as calls
from support.guard_calls import SHAPED
from support.guard_host import Host, two_hosts

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_netns]


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with two_hosts() as pair:
        yield pair[0]


def test_what_policy_shapes_is_clamped(host: Host) -> None:
    shaping = Shaping(max_priority=2, max_pacing=1_000_000, tos_fixed=True)
    host.guard("add_workload", SHAPED, shaping)
    so_priority, so_pacing = 12, 47
    assert host.call(calls.set_and_get, socket.SOL_SOCKET, so_priority, 1) == 1
    assert host.call(calls.set_and_get, socket.SOL_SOCKET, so_priority, 6) == 2
    assert host.call(calls.set_and_get, socket.SOL_SOCKET, so_pacing, 5000) == 5000
    assert host.call(calls.set_and_get, socket.SOL_SOCKET, so_pacing, 9_000_000) == 1_000_000
    assert host.call(calls.set_and_get, socket.IPPROTO_IP, socket.IP_TOS, 0x10) == 0


def test_an_option_that_would_show_something_reads_as_zeros(host: Host) -> None:
    # SO_BINDTODEVICE and IP_OPTIONS stand for those that need more of a host to show something.
    assert host.call(calls.hidden, socket.SOL_SOCKET, 25) == (b"lo\0", bytes(3))


def test_harmless_options_work(host: Host) -> None:
    assert host.call(calls.set_and_get, socket.IPPROTO_TCP, socket.TCP_NODELAY, 1) == 1
    assert host.call(calls.set_and_get, socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1) == 1
    assert host.call(calls.set_and_get, socket.IPPROTO_TCP, 23, 5) == 0, "fast open is ignored"


def test_a_stock_is_filled_again(host: Host) -> None:
    assert host.call(calls.take_many, 50) == 50


def test_cleanup_refuses_while_slimd_runs(host: Host) -> None:
    with pytest.raises(SlimError, match="cannot remove") as caught:
        clean_up(host.instance, cut=False)
    assert "stop slimd" in caught.value.hint


def test_cleanup_refuses_while_a_program_holds_a_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cleanup, "PATIENCE_S", 0.3)
    with two_hosts() as (host, _):
        pid = host.call(calls.hold_elsewhere)
        try:
            host.stop()
            with pytest.raises(SlimError, match="programs still hold sockets of 1 guarded"):
                clean_up(host.instance, cut=True)
            assert (find_places(host.instance).links / "slim_connect4").exists()
        finally:
            os.kill(pid, signal.SIGKILL)
        monkeypatch.undo()


def test_cleanup_leaves_nothing() -> None:
    with two_hosts() as pair:
        places = [find_places(host.instance) for host in pair]
    for place in places:
        assert not place.domain.exists()
        assert not place.pins.exists()
