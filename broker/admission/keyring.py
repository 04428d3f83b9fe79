"""Who may be admitted: opening keys, inbound flows and replay windows; and the keys to seal with.

Written by traps on control's word and kept in a memfd (slots.py), so that they outlive both.
Times are CLOCK_BOOTTIME seconds: they mean the same to the next process.
"""

from __future__ import annotations

import secrets
import time
from collections import Counter
from typing import TYPE_CHECKING

import msgspec

from slim.broker.admission.preamble import (
    KEY_BYTES,
    Kind,
    Open,
    Record,
    RecordRefused,
    Seal,
    Sealer,
    open_record,
    parse_header,
)
from slim.broker.endpoints import Address, packed16
from slim.broker.shaping import Shaping
from slim.broker.slots import SlotStore, key_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from slim.broker.admission.nonces import Nonces
    from slim.broker.admission.replay import ReplayWindows
    from slim.broker.listeners import ListenerRecord

SLOT_BYTES = 512
SLOTS = 65_536
MAX_FLOWS = 60_000
"""Less than there are slots: keys need some too."""
KIND_OPENING_KEY = 16
KIND_INBOUND_FLOW = 17
KIND_SEALING_KEY = 18

WAKE_PEER = ""
"""The name under which slimd admits its own wakes; no host has an empty name."""
WAKE_FLOW = 0


class OpeningKeyRecord(msgspec.Struct, frozen=True, array_like=True):
    key_id: int
    peer: str
    key: bytes
    expires: float
    addresses: list[bytes]


class SealingKeyRecord(msgspec.Struct, frozen=True, array_like=True):
    key_id: int
    peer: str
    key: bytes
    expires: float


class InboundFlow(msgspec.Struct, frozen=True, array_like=True):
    """One live answer that control gave to a peer: that source may reach that listener."""

    flow: int
    peer: str
    workload: int
    port: int
    destination: bytes
    """The overlay address that the peer asked for; the listener may be a wildcard."""
    source: bytes
    source_workload: str
    rule: str
    expires: float
    shaping: Shaping | None = None
    """Of the connections that it admits."""
    peer_rate: int | None = None
    """What the source wants to receive at most, in bytes per second."""


def boottime() -> float:
    """CLOCK_BOOTTIME (clock_gettime(2)): seconds since boot, suspended ones included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class KeyRing:
    """All admission state of a host; borrows the store, the windows and the nonces."""

    def __init__(
        self,
        store: SlotStore,
        windows: ReplayWindows,
        nonces: Nonces,
        seal: Seal,
        open_sealed: Open,
    ) -> None:
        self._store = store
        self._windows = windows
        self._nonces = nonces
        self._seal = seal
        self._open = open_sealed
        self._opening: dict[int, OpeningKeyRecord] = {}
        self._sealing: dict[str, tuple[SealingKeyRecord, Sealer]] = {}
        self._flows: dict[int, InboundFlow] = {}
        self.refused: Counter[str] = Counter()
        """Records that admitted nobody, by reason."""
        self._load()

    # --- sealing ------------------------------------------------------------------------------

    def add_sealing_key(self, peer: str, key_id: int, key: bytes, accept_s: float) -> None:
        """Seal for that peer with this key from now on."""
        record = SealingKeyRecord(key_id, peer, key, boottime() + accept_s)
        self._write(KIND_SEALING_KEY, key_id, record)
        old = self._sealing.get(peer)
        self._sealing[peer] = (record, Sealer(key_id, key, self._seal, self._nonces))
        if old is not None and old[0].key_id != key_id:
            self._store.delete(key_of(KIND_SEALING_KEY, old[0].key_id))

    def sealer(self, peer: str) -> Sealer | None:
        """The sealer for that peer; None when there is no key that the peer still accepts."""
        entry = self._sealing.get(peer)
        if entry is None or entry[0].expires <= boottime():
            return None
        return entry[1]

    def wake_sealer(self) -> Sealer:
        return self._wake

    # --- opening ------------------------------------------------------------------------------

    def add_opening_key(
        self, peer: str, key_id: int, key: bytes, accept_s: float, addresses: list[bytes]
    ) -> None:
        """Open records of that peer with this key, if they come from these host addresses."""
        now = boottime()
        for old in [old for old in self._opening.values() if old.expires <= now]:
            del self._opening[old.key_id]
            self._store.delete(key_of(KIND_OPENING_KEY, old.key_id))
        record = OpeningKeyRecord(key_id, peer, key, now + accept_s, addresses)
        self._opening[key_id] = record
        self._write(KIND_OPENING_KEY, key_id, record)

    def add_flow(self, flow: InboundFlow) -> bool:
        """Admit records that name the flow; False when there are too many flows."""
        if len(self._flows) >= MAX_FLOWS and flow.flow not in self._flows:
            self.expire()
            if len(self._flows) >= MAX_FLOWS:
                return False
        self._flows[flow.flow] = flow
        self._write(KIND_INBOUND_FLOW, flow.flow, flow)
        return True

    def flow(self, flow: int) -> InboundFlow | None:
        """The live inbound flow of that number."""
        return self._flows.get(flow)

    def drop_workload(self, workload: int) -> None:
        """Nobody is admitted to a workload that is gone."""
        for flow in [flow for flow in self._flows.values() if flow.workload == workload]:
            self.drop_flow(flow.flow)

    def drop_flow(self, flow: int) -> None:
        if self._flows.pop(flow, None) is not None:
            self._store.delete(key_of(KIND_INBOUND_FLOW, flow))

    def expire(self) -> None:
        """Forget flows and sealing keys whose time is over."""
        now = boottime()
        for flow in [flow for flow in self._flows.values() if flow.expires <= now]:
            self.drop_flow(flow.flow)
        for peer, (record, _) in [*self._sealing.items()]:
            if record.expires <= now:
                del self._sealing[peer]
                self._store.delete(key_of(KIND_SEALING_KEY, record.key_id))

    def admit(
        self, raw: bytes, tcp_peer: Address, listener: ListenerRecord
    ) -> tuple[Record, InboundFlow | None]:
        """Open a record that arrived at a listener; RecordRefused, counted, if it admits nobody.

        The flow is None for a wake. Order matters: what is cheap and unauthenticated first, the
        replay window last, since only a genuine record may move it.
        """
        try:
            return self._admit(raw, tcp_peer, listener)
        except RecordRefused as refusal:
            self.refused[str(refusal)] += 1
            raise

    def _admit(
        self, raw: bytes, tcp_peer: Address, listener: ListenerRecord
    ) -> tuple[Record, InboundFlow | None]:
        header = parse_header(raw)
        now = boottime()
        key = self._opening.get(header.key_id)
        if key is None or key.expires <= now:
            raise RecordRefused("unknown-key")
        if packed16(tcp_peer) not in key.addresses:
            raise RecordRefused("unannounced-address")
        record = open_record(raw, header, key.key, listener.host, self._open)
        flow = None
        if record.kind is Kind.WAKE:
            if key.peer != WAKE_PEER:
                raise RecordRefused("foreign-wake")
        else:
            flow = self._flows.get(record.flow)
            if flow is None or flow.expires <= now or flow.peer != key.peer:
                raise RecordRefused("unknown-flow")
            if (flow.workload, flow.port) != (listener.workload, listener.port):
                raise RecordRefused("other-listener")
            if flow.source != packed16(record.source.address):
                raise RecordRefused("other-source")
        if not self._windows.admit(key.peer, header.prefix, header.counter, now):
            raise RecordRefused("replayed")
        return record, flow

    # --- persistence --------------------------------------------------------------------------

    def _load(self) -> None:
        now = boottime()
        for raw_key, payload in [*self._store.items()]:
            try:
                expired = self._load_one(int.from_bytes(raw_key[:8], "little"), payload, now)
            except msgspec.DecodeError:
                expired = True
            if expired:
                self._store.delete(raw_key)
        self._ensure_wake_key()

    def _load_one(self, kind: int, payload: bytes, now: float) -> bool:
        decode = msgspec.msgpack.decode
        if kind == KIND_OPENING_KEY:
            opening = decode(payload, type=OpeningKeyRecord)
            self._opening[opening.key_id] = opening
            return opening.expires <= now
        if kind == KIND_SEALING_KEY:
            sealing = decode(payload, type=SealingKeyRecord)
            newest = self._sealing.get(sealing.peer)
            if newest is None or newest[0].expires < sealing.expires:
                sealer = Sealer(sealing.key_id, sealing.key, self._seal, self._nonces)
                self._sealing[sealing.peer] = (sealing, sealer)
            return sealing.expires <= now
        if kind == KIND_INBOUND_FLOW:
            flow = decode(payload, type=InboundFlow)
            self._flows[flow.flow] = flow
            return flow.expires <= now
        return False

    def _ensure_wake_key(self) -> None:
        known = [key for key in self._opening.values() if key.peer == WAKE_PEER]
        if known:
            record = known[0]
        else:
            record = OpeningKeyRecord(
                new_key_id(), WAKE_PEER, secrets.token_bytes(KEY_BYTES), float("inf"), []
            )
        self._wake_record = record
        self._opening[record.key_id] = record
        self._wake = Sealer(record.key_id, record.key, self._seal, self._nonces)

    def set_own_addresses(self, addresses: list[bytes]) -> None:
        """Wakes come from the host's own addresses."""
        record = msgspec.structs.replace(self._wake_record, addresses=addresses)
        self._wake_record = self._opening[record.key_id] = record
        self._write(KIND_OPENING_KEY, record.key_id, record)

    def _write(self, kind: int, number: int, record: msgspec.Struct) -> None:
        self._store.put(key_of(kind, number), msgspec.msgpack.encode(record))


def read_flows(store: SlotStore) -> Iterator[InboundFlow]:
    """Every readable inbound flow of a store, also from another process."""
    prefix = key_of(KIND_INBOUND_FLOW, 0)[:8]
    for key, payload in store.items():
        if key[:8] == prefix:
            try:
                yield msgspec.msgpack.decode(payload, type=InboundFlow)
            except msgspec.DecodeError:
                # The writer replaced the slot while it was copied: then it is a new flow.
                continue


def flow_key(flow: int) -> bytes:
    """The key of an inbound flow in the store."""
    return key_of(KIND_INBOUND_FLOW, flow)


def new_key_id() -> int:
    """A random 32-bit key id: key ids of different hosts must not collide at a third."""
    return secrets.randbits(32) | 1
