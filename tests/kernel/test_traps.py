"""The real trap process: connect and accept under the real filter, and hostile host connections.

Whoever can reach a host listener may connect to it; who has no valid record must not reach the
program, and must not keep those out that have one.
"""

from __future__ import annotations

import os
import socket
import struct
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from slim.broker.admission.preamble import RECORD_BYTES, open_record, parse_header
from slim.broker.endpoints import Endpoint, packed16
from slim.broker.local import messages
from slim.plugins.encryption import aesgcm_cipher
from support.trap_stage import (
    HOST_ADDRESS,
    KEY,
    OVERLAY_ADDRESS,
    PEER,
    SOURCE,
    STRANGER_ADDRESS,
    TrapStage,
    trap_stage,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [
    pytest.mark.needs_root,
    pytest.mark.needs_netns,
    pytest.mark.needs_program("ip", "nsenter", "unshare"),
]

FLOW, OTHER_FLOW = 9, 10
PORT, OTHER_PORT = 8080, 8081
PATIENCE_S = 10
"""Parked connections have a deadline of 2 s, deferred ones of a SYN-ACK's retransmission more."""


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrapStage]:
    """Traps, keeper, control and a program; scope: module."""
    with trap_stage(tmp_path_factory.mktemp("traps")) as running:
        yield running


@pytest.fixture(scope="module")
def listener(stage: TrapStage) -> Endpoint:
    """The host endpoint of a listener of the program's, and a flow to it; scope: module."""
    at = stage.listen(PORT, backlog=5)
    stage.announce(PORT, FLOW)
    return at


@pytest.fixture(scope="module")
def other_listener(stage: TrapStage) -> Endpoint:
    """A second listener of the same program; scope: module."""
    at = stage.listen(OTHER_PORT)
    stage.announce(OTHER_PORT, OTHER_FLOW)
    return at


def is_thrown_out(sock: socket.socket) -> bool:
    """Whether the other side ends the connection, by a reset or at least without a byte."""
    sock.settimeout(PATIENCE_S)
    try:
        return sock.recv(1) == b""
    except ConnectionResetError:
        return True


# --- connect ----------------------------------------------------------------------------------


def test_a_denied_connect_gets_the_errno_of_policy(stage: TrapStage) -> None:
    to = Endpoint.parse("10.1.0.66:81")
    stage.control.answers[to] = messages.FlowDenied(0, 13, 1000, "rules:no")
    stage.program.tell(connect=[str(to.address), to.port])
    assert stage.program.says() == {"error": "EACCES"}


def test_a_connect_left_to_the_overlay_goes_there(stage: TrapStage) -> None:
    with stage.workload.socket() as native:
        native.bind((str(OVERLAY_ADDRESS), 0))
        native.listen()
        to = Endpoint(OVERLAY_ADDRESS, native.getsockname()[1])
        stage.control.answers[to] = messages.FlowOverlay(0, "no-listener", 1000, "")
        stage.program.tell(connect=[str(to.address), to.port])
        assert stage.program.says()["connected"] == [str(to.address), to.port]
        with native.accept()[0] as taken:
            assert taken.recv(100) == b"hello"


def test_a_fast_connect_arrives_at_the_host_behind_a_sealed_record(stage: TrapStage) -> None:
    to = Endpoint.parse("10.1.0.2:5432")
    with stage.host.socket() as host:
        host.bind((str(HOST_ADDRESS), 0))
        host.listen()
        at = Endpoint(HOST_ADDRESS, host.getsockname()[1])
        stage.control.send(messages.SealingKey(PEER, 0x61, KEY, 60_000, 300_000))
        stage.control.answers[to] = messages.FlowFast(
            token=0,
            source=packed16(OVERLAY_ADDRESS),
            host_address=packed16(at.address),
            host_port=at.port,
            flow=4711,
            peer=PEER,
            lifetime_ms=1000,
            fallback_lawful=True,
            rule="",
        )
        stage.program.tell(connect=[str(to.address), to.port])
        said = stage.program.says()
        assert said["connected"] == [str(to.address), to.port]
        assert said["local"][0] == str(OVERLAY_ADDRESS)
        taken, _ = host.accept()
        with taken:
            taken.settimeout(PATIENCE_S)
            raw = taken.recv(RECORD_BYTES, socket.MSG_WAITALL)
            record = open_record(raw, parse_header(raw), KEY, at, aesgcm_cipher.open)
            assert (record.flow, record.source.address) == (4711, OVERLAY_ADDRESS)
            assert taken.recv(100) == b"hello"


# --- accept -----------------------------------------------------------------------------------


def test_a_peer_with_a_valid_record_is_served(stage: TrapStage, listener: Endpoint) -> None:
    stage.serve_peer(listener, FLOW)


def test_the_program_sees_overlay_addresses_only(stage: TrapStage, listener: Endpoint) -> None:
    with stage.connect(listener) as peer:
        peer.sendall(stage.record(listener, FLOW) + b"x")
        assert peer.recv(100) == b"ok"
    said = stage.program.says()
    assert said["accepted"] == [str(SOURCE.address), SOURCE.port]
    assert said["local"] == [str(OVERLAY_ADDRESS), PORT]


def test_a_record_in_pieces_is_put_together(stage: TrapStage, listener: Endpoint) -> None:
    raw = stage.record(listener, FLOW)
    with stage.connect(listener) as peer:
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for start in range(0, RECORD_BYTES, 16):
            peer.sendall(raw[start : start + 16])
        peer.sendall(b"behind it")
        assert peer.recv(100) == b"ok"
    assert bytes.fromhex(stage.program.says()["data"]) == b"behind it"


# --- strangers --------------------------------------------------------------------------------


def test_a_silent_stranger_is_thrown_out(stage: TrapStage, listener: Endpoint) -> None:
    with stage.connect(listener, STRANGER_ADDRESS) as stranger:
        stage.serve_peer(listener, FLOW)
        assert is_thrown_out(stranger)
    assert stage.program.said_nothing()


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\nHost: server\r\n\r\n".ljust(200),
        bytes(RECORD_BYTES),
        b"SLIM\x01".ljust(RECORD_BYTES, b"\xff"),
        os.urandom(4096),
    ],
    ids=["http", "zeroes", "header only", "noise"],
)
def test_garbage_never_reaches_the_program(
    stage: TrapStage, listener: Endpoint, sent: bytes
) -> None:
    with stage.connect(listener) as stranger:
        stranger.sendall(sent)
        assert is_thrown_out(stranger)
    stage.serve_peer(listener, FLOW)
    assert stage.program.said_nothing()


@pytest.mark.parametrize("length", [1, 24, 79])
def test_a_truncated_record_never_reaches_the_program(
    stage: TrapStage, listener: Endpoint, length: int
) -> None:
    raw = stage.record(listener, FLOW)[:length]
    with stage.connect(listener) as ends, stage.connect(listener) as waits:
        ends.sendall(raw)
        ends.shutdown(socket.SHUT_WR)
        waits.sendall(raw)
        stage.serve_peer(listener, FLOW)
        assert is_thrown_out(ends)
        assert is_thrown_out(waits)
    assert stage.program.said_nothing()


def test_no_changed_byte_of_a_valid_record_is_admitted(
    stage: TrapStage, listener: Endpoint
) -> None:
    for position in range(RECORD_BYTES):
        changed = bytearray(stage.record(listener, FLOW))
        changed[position] ^= 0xFF
        with stage.connect(listener) as stranger:
            stranger.sendall(changed)
            assert is_thrown_out(stranger), f"byte {position}"
    stage.serve_peer(listener, FLOW)
    assert stage.program.said_nothing()


def test_a_replayed_record_is_refused(stage: TrapStage, listener: Endpoint) -> None:
    raw = stage.record(listener, FLOW)
    with stage.connect(listener) as peer:
        peer.sendall(raw + b"first")
        assert peer.recv(100) == b"ok"
    assert bytes.fromhex(stage.program.says()["data"]) == b"first"
    with stage.connect(listener) as replaying:
        replaying.sendall(raw + b"again")
        assert is_thrown_out(replaying)
    stage.serve_peer(listener, FLOW)
    assert stage.program.said_nothing()


def test_a_record_from_an_unannounced_address_is_refused(
    stage: TrapStage, listener: Endpoint
) -> None:
    raw = stage.record(listener, FLOW)
    with stage.connect(listener, STRANGER_ADDRESS) as stranger:
        stranger.sendall(raw)
        assert is_thrown_out(stranger)
    # It was not used up by that: the thief's try moved no window.
    with stage.connect(listener) as peer:
        peer.sendall(raw + b"mine")
        assert peer.recv(100) == b"ok"
    assert bytes.fromhex(stage.program.says()["data"]) == b"mine"


def test_a_record_is_worth_nothing_at_another_listener(
    stage: TrapStage, listener: Endpoint, other_listener: Endpoint
) -> None:
    for_the_first = stage.record(listener, FLOW)
    with stage.connect(other_listener) as stranger:
        stranger.sendall(for_the_first)
        assert is_thrown_out(stranger)
    # Sealed for this listener, but in the name of a flow to the other.
    with stage.connect(other_listener) as stranger:
        stranger.sendall(stage.record(other_listener, FLOW))
        assert is_thrown_out(stranger)
    stage.serve_peer(other_listener, OTHER_FLOW)
    assert stage.program.said_nothing()


def test_an_unknown_flow_is_refused(stage: TrapStage, listener: Endpoint) -> None:
    with stage.connect(listener) as stranger:
        stranger.sendall(stage.record(listener, 0x12345678))
        assert is_thrown_out(stranger)
    stage.serve_peer(listener, FLOW)


def test_a_dropped_flow_admits_nobody(stage: TrapStage, listener: Endpoint) -> None:
    stage.announce(PORT, 77)
    stage.serve_peer(listener, 77)
    stage.control.send(messages.DropInbound(0, [77]))
    # Answered behind the message before.
    stage.announce(PORT, FLOW)
    with stage.connect(listener) as late:
        late.sendall(stage.record(listener, 77))
        assert is_thrown_out(late)
    stage.serve_peer(listener, FLOW)


def test_a_peer_that_resets_at_once_disturbs_nobody(stage: TrapStage, listener: Endpoint) -> None:
    for _ in range(20):
        with stage.connect(listener) as peer:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            peer.sendall(stage.record(listener, FLOW))
    with stage.connect(listener) as good:
        good.sendall(stage.record(listener, FLOW) + b"good")
        assert good.recv(100) == b"ok"
    # A connection that was reset after it was taken is the program's to find out.
    while bytes.fromhex(stage.program.says().get("data", "")) != b"good":
        pass


def test_many_silent_strangers_do_not_delay_a_good_peer(
    stage: TrapStage, listener: Endpoint
) -> None:
    with ExitStack() as stack:
        for _ in range(500):
            stranger = stack.enter_context(stage.host.socket())
            stranger.setblocking(False)
            stranger.bind((str(STRANGER_ADDRESS), 0))
            stranger.connect_ex((str(listener.address), listener.port))
        fastest = min(stage.serve_peer(listener, FLOW) for _ in range(3))
        assert fastest < 0.1, f"{fastest * 1000:.0f} ms"
    assert stage.program.said_nothing()


def test_strangers_with_half_a_record_do_not_keep_a_good_peer_out(
    stage: TrapStage, listener: Endpoint
) -> None:
    """More of them than may be parked: the oldest go."""
    half = stage.record(listener, FLOW)[:40]
    with ExitStack() as stack:
        strangers = []
        for _ in range(300):
            stranger = stack.enter_context(stage.connect(listener, STRANGER_ADDRESS))
            stranger.sendall(half)
            strangers.append(stranger)
        stage.serve_peer(listener, FLOW)
        assert all(is_thrown_out(stranger) for stranger in strangers)
    assert stage.program.said_nothing()
