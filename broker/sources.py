"""Who is behind an overlay address of another workload: identities from the control channel.

What a peer's slimd said in Resolve, or in an answer to it, is kept for as long as connections of
that workload may live, so that a change of policy can judge them again, also by a control that was
not there when they were made. In a memfd that the keeper holds; control is its only writer.
"""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from typing import TYPE_CHECKING

import msgspec

from slim.broker.decisions import Identity
from slim.broker.slots import SlotStore

if TYPE_CHECKING:
    from slim.broker.control_links import KeeperClient

NAME = "memory/sources"
SLOT_BYTES = 2048
SLOTS = 16_384


class SourceRecord(msgspec.Struct, frozen=True, array_like=True):
    """One source; the schema of the memfd."""

    peer: str
    """The host whose slimd vouches for it."""
    address: bytes
    workload: str
    namespace: str
    labels: dict[str, str]


async def open_sources(keeper: KeeperClient) -> Sources:
    """What a predecessor left with the keeper, or an empty table that the keeper holds."""
    held, _ = await keeper.fetch(NAME)
    fds = [fd for _, _, own in held for fd in own]
    if not fds:
        store = SlotStore.create("slim-sources", slot_bytes=SLOT_BYTES, slots=SLOTS)
        await keeper.store(NAME, b"", (store.fileno(),))
        return Sources(store)
    for fd in fds[1:]:
        os.close(fd)
    return Sources(SlotStore(fds[0], writable=True))


class Sources:
    """Sources by host and address, the one asked for longest ago first. Owns the store."""

    def __init__(self, store: SlotStore) -> None:
        self._store = store
        self._known: OrderedDict[tuple[str, bytes], Identity] = OrderedDict()
        for key, payload in [*store.items()]:
            try:
                record = msgspec.msgpack.decode(payload, type=SourceRecord)
            except msgspec.DecodeError:
                store.delete(key)
                continue
            identity = Identity(record.workload, record.namespace, record.labels)
            self._known[record.peer, record.address] = identity

    def close(self) -> None:
        self._store.close()

    def __len__(self) -> int:
        return len(self._known)

    def get(self, peer: str, address: bytes) -> Identity | None:
        """The workload's identity; None when its host has not said it, or too many others."""
        return self._known.get((peer, address))

    def remember(self, peer: str, address: bytes, identity: Identity) -> bool:
        """The peer vouches for this; True if it said otherwise before."""
        key = (peer, address)
        before = self._known.get(key)
        if before == identity:
            self._known.move_to_end(key)
            return False
        if before is None and len(self._known) >= self._store.slots:
            oldest, _ = self._known.popitem(last=False)
            self._store.delete(_slot_key(*oldest))
        self._known[key] = identity
        self._known.move_to_end(key)
        record = SourceRecord(
            peer, address, identity.workload, identity.namespace, dict(identity.labels)
        )
        slot = _slot_key(peer, address)
        if not self._store.put(slot, msgspec.msgpack.encode(record)):
            # Labels that do not fit are known to this process only; never another's.
            self._store.delete(slot)
        return before is not None


def _slot_key(peer: str, address: bytes) -> bytes:
    return hashlib.blake2b(peer.encode() + b"\0" + address, digest_size=16).digest()
