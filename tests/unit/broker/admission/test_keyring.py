"""Who is admitted: the state of a host, its refusals by reason, and what a successor knows."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import msgspec
import pytest

from slim.broker.admission import keyring
from slim.broker.admission.keyring import InboundFlow, KeyRing
from slim.broker.admission.nonces import Nonces
from slim.broker.admission.preamble import Kind, Record, RecordRefused, Sealer
from slim.broker.admission.replay import ReplayWindows
from slim.broker.endpoints import Endpoint, packed16, parse_address
from slim.broker.listeners import ListenerRecord
from slim.broker.slots import SlotStore, key_of
from slim.plugins.encryption import aesgcm_cipher

if TYPE_CHECKING:
    from collections.abc import Iterator

KEY = bytes(range(32))
PEER_ADDRESS = parse_address("192.0.2.2")
OWN_ADDRESS = parse_address("192.0.2.1")
SOURCE = Endpoint.parse("10.1.0.2:40000")
LISTENER = ListenerRecord(
    cookie=5,
    workload=77,
    family=2,
    address=packed16(parse_address("0.0.0.0")),
    dual_stack=False,
    port=80,
    host_address=packed16(OWN_ADDRESS),
    host_port=20000,
    pid=1,
    created=0.0,
)
FLOW = InboundFlow(
    flow=9,
    peer="b",
    workload=77,
    port=80,
    destination=packed16(parse_address("10.1.0.1")),
    source=packed16(SOURCE.address),
    source_workload="web",
    rule="default",
    expires=1e12,
)


class Clock:
    now = 1000.0


PEER_NONCES = Nonces.create()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(keyring, "boottime", lambda: clock.now)
    return clock


class Memory:
    """What outlives a process."""

    def __init__(self) -> None:
        self.store = SlotStore.create("slim-test", slot_bytes=512, slots=64)
        self.windows = ReplayWindows.create(windows=8, lifetime_s=360)
        self.nonces = Nonces.create()

    def ring(self) -> KeyRing:
        """The key ring of the process, or of its successor."""
        store = SlotStore(os.dup(self.store.fileno()), writable=True)
        windows = ReplayWindows(os.dup(self.windows.fileno()), lifetime_s=360)
        nonces = Nonces(os.dup(self.nonces.fileno()))
        self.opened = [*getattr(self, "opened", []), store, windows, nonces]
        ring = KeyRing(store, windows, nonces, aesgcm_cipher.seal, aesgcm_cipher.open)
        ring.set_own_addresses([packed16(OWN_ADDRESS)])
        return ring

    def close(self) -> None:
        for each in (self.store, self.windows, self.nonces, *getattr(self, "opened", [])):
            each.close()


@pytest.fixture
def memory(clock: Clock) -> Iterator[Memory]:
    memory = Memory()
    yield memory
    memory.close()


@pytest.fixture
def ring(memory: Memory) -> KeyRing:
    ring = memory.ring()
    ring.add_opening_key("b", 21, KEY, 360, [packed16(PEER_ADDRESS)])
    assert ring.add_flow(FLOW)
    return ring


def sealed(
    *, flow: int = 9, kind: Kind = Kind.DATA, source: Endpoint = SOURCE, key_id: int = 21
) -> bytes:
    sealer = Sealer(key_id, KEY, aesgcm_cipher.seal, PEER_NONCES)
    return sealer.seal(Record(flow, kind, source), LISTENER.host)


def refusal(ring: KeyRing, raw: bytes, peer: str = "192.0.2.2", **listener: object) -> str:
    """Why the record admits nobody; counted under that reason."""
    before = sum(ring.refused.values())
    at = msgspec.structs.replace(LISTENER, **listener)
    with pytest.raises(RecordRefused) as caught:
        ring.admit(raw, parse_address(peer), at)
    reason = str(caught.value)
    assert ring.refused[reason] >= 1
    assert sum(ring.refused.values()) == before + 1
    return reason


# --- admitting --------------------------------------------------------------------------------


def test_a_genuine_record_is_admitted_with_its_flow(ring: KeyRing) -> None:
    record, flow = ring.admit(sealed(), PEER_ADDRESS, LISTENER)
    assert record == Record(9, Kind.DATA, SOURCE)
    assert flow == FLOW
    assert not ring.refused


def test_a_record_is_admitted_once(ring: KeyRing) -> None:
    raw = sealed()
    ring.admit(raw, PEER_ADDRESS, LISTENER)
    assert refusal(ring, raw) == "replayed"


def test_a_refused_record_does_not_move_the_replay_window(ring: KeyRing) -> None:
    raw = sealed()
    assert refusal(ring, raw, port=81) == "other-listener"
    ring.admit(raw, PEER_ADDRESS, LISTENER)


def test_refusals_by_reason(ring: KeyRing, clock: Clock) -> None:
    assert refusal(ring, b"") == "truncated"
    assert refusal(ring, bytes(80)) == "not-a-record"
    assert refusal(ring, sealed(key_id=22)) == "unknown-key"
    assert refusal(ring, sealed(), "192.0.2.3") == "unannounced-address"
    assert refusal(ring, sealed()[:-1] + b"\0") == "forged"
    assert refusal(ring, sealed(flow=10)) == "unknown-flow"
    assert refusal(ring, sealed(), workload=78) == "other-listener"
    assert refusal(ring, sealed(), port=81) == "other-listener"
    assert refusal(ring, sealed(), host_port=20001) == "forged"
    assert refusal(ring, sealed(source=Endpoint.parse("10.1.0.3:1"))) == "other-source"
    assert refusal(ring, sealed(kind=Kind.WAKE)) == "foreign-wake"


def test_a_flow_belongs_to_the_peer_that_asked(ring: KeyRing) -> None:
    ring.add_opening_key("c", 22, KEY, 360, [packed16(PEER_ADDRESS)])
    assert refusal(ring, sealed(key_id=22)) == "unknown-flow"


def test_keys_and_flows_end_with_their_time(ring: KeyRing, clock: Clock) -> None:
    ring.add_flow(msgspec.structs.replace(FLOW, flow=10, expires=clock.now + 5))
    ring.admit(sealed(flow=10), PEER_ADDRESS, LISTENER)
    clock.now += 5
    assert refusal(ring, sealed(flow=10)) == "unknown-flow"
    clock.now += 355
    assert refusal(ring, sealed()) == "unknown-key"


def test_a_new_key_sweeps_out_the_expired(ring: KeyRing, memory: Memory, clock: Clock) -> None:
    gone = key_of(keyring.KIND_OPENING_KEY, 21)
    assert gone in dict(memory.store.items())
    clock.now += 360
    ring.add_opening_key("b", 22, KEY, 360, [packed16(PEER_ADDRESS)])
    assert gone not in dict(memory.store.items())
    ring.admit(sealed(key_id=22), PEER_ADDRESS, LISTENER)


def test_flows_are_dropped_one_by_one_by_workload_and_by_age(ring: KeyRing, clock: Clock) -> None:
    for number, workload in ((11, 77), (12, 78), (13, 78)):
        ring.add_flow(
            msgspec.structs.replace(
                FLOW, flow=number, workload=workload, expires=clock.now + number
            )
        )
    ring.drop_flow(9)
    ring.drop_flow(9)
    assert refusal(ring, sealed()) == "unknown-flow"
    ring.drop_workload(77)
    assert refusal(ring, sealed(flow=11)) == "unknown-flow"
    clock.now += 12
    ring.expire()
    assert refusal(ring, sealed(flow=12), workload=78) == "unknown-flow"
    ring.admit(sealed(flow=13), PEER_ADDRESS, msgspec.structs.replace(LISTENER, workload=78))


def test_too_many_flows_are_refused(
    ring: KeyRing, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keyring, "MAX_FLOWS", 2)
    second = msgspec.structs.replace(FLOW, flow=10, expires=clock.now + 5)
    third = msgspec.structs.replace(FLOW, flow=11)
    assert ring.add_flow(second)
    assert not ring.add_flow(third)
    assert ring.add_flow(FLOW)
    clock.now += 5
    assert ring.add_flow(third)


# --- sealing ----------------------------------------------------------------------------------


def test_the_newest_key_seals_until_nobody_accepts_it(ring: KeyRing, clock: Clock) -> None:
    assert ring.sealer("b") is None
    ring.add_sealing_key("b", 31, KEY, 360)
    ring.add_sealing_key("b", 32, KEY, 360)
    sealer = ring.sealer("b")
    assert sealer is not None
    assert sealer.key_id == 32
    clock.now += 360
    assert ring.sealer("b") is None
    ring.expire()
    assert ring.sealer("b") is None


# --- wakes ------------------------------------------------------------------------------------


def wake(ring: KeyRing) -> bytes:
    record = Record(keyring.WAKE_FLOW, Kind.WAKE, Endpoint(OWN_ADDRESS, 0))
    return ring.wake_sealer().seal(record, LISTENER.host)


def test_wakes_come_from_this_host_only(ring: KeyRing) -> None:
    record, flow = ring.admit(wake(ring), OWN_ADDRESS, LISTENER)
    assert record.kind is Kind.WAKE
    assert flow is None
    assert refusal(ring, wake(ring)) == "unannounced-address"


def test_data_sealed_as_a_wake_names_no_flow(ring: KeyRing) -> None:
    raw = ring.wake_sealer().seal(Record(9, Kind.DATA, SOURCE), LISTENER.host)
    assert refusal(ring, raw, str(OWN_ADDRESS)) == "unknown-flow"


# --- a successor ------------------------------------------------------------------------------


def test_a_successor_knows_keys_flows_and_what_was_seen(ring: KeyRing, memory: Memory) -> None:
    raw, old_wake = sealed(), wake(ring)
    ring.admit(raw, PEER_ADDRESS, LISTENER)
    ring.add_sealing_key("b", 31, KEY, 360)
    successor = memory.ring()
    assert refusal(successor, raw) == "replayed"
    successor.admit(sealed(), PEER_ADDRESS, LISTENER)
    successor.admit(old_wake, OWN_ADDRESS, LISTENER)
    sealer = successor.sealer("b")
    assert sealer is not None
    assert sealer.key_id == 31


def test_a_successor_forgets_what_expired(ring: KeyRing, memory: Memory, clock: Clock) -> None:
    ring.add_flow(msgspec.structs.replace(FLOW, expires=clock.now + 10))
    ring.add_sealing_key("b", 31, KEY, 10)
    clock.now += 400
    memory.ring()
    # The wake key is all that is left.
    assert len([*memory.store.items()]) == 1


def test_of_two_sealing_keys_a_successor_takes_the_later(
    ring: KeyRing, memory: Memory, clock: Clock
) -> None:
    for key_id, expires in ((31, clock.now + 20), (32, clock.now + 30), (33, clock.now + 10)):
        record = keyring.SealingKeyRecord(key_id, "b", KEY, expires)
        key = key_of(keyring.KIND_SEALING_KEY, key_id)
        memory.store = SlotStore(os.dup(memory.store.fileno()), writable=True)
        memory.store.put(key, msgspec.msgpack.encode(record))
    sealer = memory.ring().sealer("b")
    assert sealer is not None
    assert sealer.key_id == 32


def test_an_unreadable_record_is_thrown_away(memory: Memory) -> None:
    memory.store.put(key_of(keyring.KIND_INBOUND_FLOW, 1), b"\xc1 not msgpack")
    memory.store.put(key_of(keyring.KIND_OPENING_KEY, 2), msgspec.msgpack.encode(["x"]))
    memory.store.put(key_of(99, 3), b"of a later version")
    memory.ring()
    kinds = {int.from_bytes(key[:8], "little") for key, _ in memory.store.items()}
    assert kinds == {keyring.KIND_OPENING_KEY, 99}


def test_key_ids_are_odd_and_fit_32_bits() -> None:
    assert all(keyring.new_key_id() & 1 and keyring.new_key_id() < 1 << 32 for _ in range(50))


def test_boottime_does_not_go_back() -> None:
    assert 0 < keyring.boottime() <= keyring.boottime()
