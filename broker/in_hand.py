"""What traps is in the middle of, in a memfd of the keeper's: its successor finishes it.

    Swap      another file is behind the program's fd; its epoll registrations may not have followed
    Delivery  a connection is behind a new fd, whose number the program was not told
    Answer    the work is done, and the answer is on its way

Everything else that a killed traps leaves can be judged by the socket behind the fd. Traps is one
thread: there is at most one thing in hand. The notification's id tells whether the thread still
waits: then what was in hand is finished in its name.
"""

from __future__ import annotations

import mmap
import os
import struct
from typing import TYPE_CHECKING, TypeAlias

import msgspec

if TYPE_CHECKING:
    from slim.broker.kernel.epoll_registrations import Registration
    from slim.broker.supervisor import PendingCall

SIZE = 64 * 1024
_LENGTH = struct.Struct("<I")
_NOTHING = _LENGTH.pack(0)


class CallId(msgspec.Struct, frozen=True, array_like=True):
    """A notification, as another process can name it."""

    container: str
    notification: int
    tid: int


class Swap(msgspec.Struct, frozen=True, array_like=True, tag=True):
    call: CallId
    fd: int
    old_inode: int
    new_cookie: int
    registrations: list[tuple[int, int, int]]
    """Epoll fd, events, data of each: what the old file was registered for."""
    then: int | None
    """The errno that the call is answered with afterwards; None: it is not answered yet."""


class Delivery(msgspec.Struct, frozen=True, array_like=True, tag=True):
    call: CallId
    cookie: int


class Answer(msgspec.Struct, frozen=True, array_like=True, tag=True):
    call: CallId
    errno: int


Work: TypeAlias = Swap | Delivery | Answer

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Work] = msgspec.msgpack.Decoder(Work)


class InHand:
    """The one record. Owns its memfd; written by traps only."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._map = mmap.mmap(fd, SIZE)

    @classmethod
    def create(cls) -> InHand:
        fd = os.memfd_create("slim-in-hand", os.MFD_CLOEXEC)
        os.ftruncate(fd, SIZE)
        return cls(fd)

    def fileno(self) -> int:
        return self._fd

    def close(self) -> None:
        self._map.close()
        os.close(self._fd)

    def swap(
        self,
        call: PendingCall,
        fd: int,
        old_inode: int,
        new_cookie: int,
        registrations: list[Registration],
        then: int | None,
    ) -> None:
        packed = [(each.epoll_fd, each.events, each.data) for each in registrations]
        self._put(Swap(_id_of(call), fd, old_inode, new_cookie, packed, then))

    def delivery(self, call: PendingCall, cookie: int) -> None:
        self._put(Delivery(_id_of(call), cookie))

    def answer(self, call: PendingCall, errno: int) -> None:
        self._put(Answer(_id_of(call), errno))

    def nothing(self) -> None:
        self._map[: _LENGTH.size] = _NOTHING

    def _put(self, work: Work) -> None:
        payload = _encoder.encode(work)
        # The length last, and cleared first: a writer that dies half-way leaves nothing.
        self.nothing()
        if len(payload) > SIZE - _LENGTH.size:
            # Thousands of epoll sets hold one socket: without a record only a crash in this very
            # moment loses them.
            return
        self._map[_LENGTH.size : _LENGTH.size + len(payload)] = payload
        self._map[: _LENGTH.size] = _LENGTH.pack(len(payload))

    def take(self) -> Work | None:
        """What a predecessor was in the middle of, once."""
        (length,) = _LENGTH.unpack_from(self._map)
        if not 0 < length <= SIZE - _LENGTH.size:
            return None
        payload = self._map[_LENGTH.size : _LENGTH.size + length]
        self.nothing()
        try:
            return _decoder.decode(payload)
        except msgspec.DecodeError:
            return None


def _id_of(call: PendingCall) -> CallId:
    return CallId(call.container.state.container, call.notification.id, call.tid)
