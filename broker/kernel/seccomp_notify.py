"""Seccomp user notifications: receive, validate, put fds into the target, reply.

Some facts about seccomp notifications (seccomp_unotify(2), linux/seccomp.h; Linux 5.0 and on):

- RECV wants a zeroed buffer and blocks although the fd is O_NONBLOCK: receive only after poll.
- An id dies when the thread leaves its call: by a signal (the call may come again under a new
  id), or by death. Every ioctl with a dead id fails with ENOENT; that is `TargetGone`.
- Whatever was read from the target belongs to it only if the id is valid *afterwards*.
- ADDFD wakes the target to install the fd itself, and waits for that. With SEND the reply is
  atomic with it, and not to be used: if the *supervisor* is interrupted while it waits (killed,
  stopped, frozen, traced), the fd is not installed, but the call is answered, with 0. A program
  takes that for its new connection. Without SEND an interrupted request is withdrawn and done anew.
- The listener reports HUP when no process uses the filter any more.
"""

from __future__ import annotations

import errno
import fcntl
import struct
from dataclasses import dataclass

from slim.broker.errors import SyscallError, TargetGone

# From linux/seccomp.h.
SECCOMP_ADDFD_FLAG_SETFD = 1
SECCOMP_IOCTL_NOTIF_ADDFD = 0x40182103
SECCOMP_IOCTL_NOTIF_ID_VALID = 0x40082102
SECCOMP_IOCTL_NOTIF_RECV = 0xC0502100
SECCOMP_IOCTL_NOTIF_SEND = 0xC0182101
SECCOMP_IOCTL_NOTIF_SET_FLAGS = 0x40082104
SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP = 1
SECCOMP_USER_NOTIF_FLAG_CONTINUE = 1

# struct seccomp_notif, _resp and _addfd.
_NOTIF = struct.Struct("<QIIiIQ6Q")
_RESPONSE = struct.Struct("<QqiI")
_ADDFD = struct.Struct("<QIIII")
_ID = struct.Struct("<Q")
_ZEROES = bytes(_NOTIF.size)

_ioctl = fcntl.ioctl


@dataclass(slots=True)
class Notification:
    """One trapped system call: `struct seccomp_notif`, with the arguments as they were passed."""

    id: int
    tid: int
    nr: int
    arch: int
    args: tuple[int, int, int, int, int, int]


def receive(listener: int) -> Notification | None:
    """SECCOMP_IOCTL_NOTIF_RECV, Linux 5.0: the next notification; None when it went away again."""
    buffer = bytearray(_ZEROES)
    try:
        _ioctl(listener, SECCOMP_IOCTL_NOTIF_RECV, buffer)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.EINTR):
            return None
        raise SyscallError("ioctl(NOTIF_RECV)", error.errno or 0) from None
    id_, tid, _flags, nr, arch, _ip, a0, a1, a2, a3, a4, a5 = _NOTIF.unpack(buffer)
    return Notification(id_, tid, nr, arch, (a0, a1, a2, a3, a4, a5))


def is_valid(listener: int, notification: int) -> bool:
    """SECCOMP_IOCTL_NOTIF_ID_VALID, Linux 5.0 (number fixed in 5.8): is the call still waiting?"""
    try:
        _ioctl(listener, SECCOMP_IOCTL_NOTIF_ID_VALID, _ID.pack(notification))
    except OSError as error:
        if error.errno == errno.ENOENT:
            return False
        raise SyscallError("ioctl(NOTIF_ID_VALID)", error.errno or 0) from None
    return True


def reply(listener: int, notification: int, *, value: int = 0, error: int = 0) -> None:
    """SECCOMP_IOCTL_NOTIF_SEND, Linux 5.0: the call returns `value`, or fails with `error`."""
    _send(listener, _RESPONSE.pack(notification, value, -error, 0))


def reply_continue(listener: int, notification: int) -> None:
    """SECCOMP_USER_NOTIF_FLAG_CONTINUE, Linux 5.5: the kernel performs the call as if untrapped."""
    _send(listener, _RESPONSE.pack(notification, 0, 0, SECCOMP_USER_NOTIF_FLAG_CONTINUE))


def replace_fd(listener: int, notification: int, fd: int, target_fd: int, *, cloexec: bool) -> None:
    """SECCOMP_ADDFD_FLAG_SETFD, Linux 5.9: dup2 onto the target's number; borrows `fd`."""
    request = _ADDFD.pack(
        notification, SECCOMP_ADDFD_FLAG_SETFD, fd, target_fd, 0o2000000 if cloexec else 0
    )
    _add(listener, request)


def add_fd(listener: int, notification: int, fd: int, *, cloexec: bool) -> int:
    """SECCOMP_IOCTL_NOTIF_ADDFD, Linux 5.9: a new fd in the target; gives its number there."""
    request = _ADDFD.pack(notification, 0, fd, 0, 0o2000000 if cloexec else 0)
    return _add(listener, request)


def set_sync_wake_up(listener: int) -> bool:
    """SECCOMP_IOCTL_NOTIF_SET_FLAGS, Linux 6.6: wake supervisor and target on one CPU.

    The argument goes by value although the number says pointer. False: this kernel has it not.
    """
    try:
        _ioctl(listener, SECCOMP_IOCTL_NOTIF_SET_FLAGS, SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP)
    except OSError:
        return False
    return True


def _send(listener: int, response: bytes) -> None:
    try:
        _ioctl(listener, SECCOMP_IOCTL_NOTIF_SEND, response)
    except OSError as error:
        if error.errno == errno.ENOENT:
            raise TargetGone from None
        raise SyscallError("ioctl(NOTIF_SEND)", error.errno or 0) from None


def _add(listener: int, request: bytes) -> int:
    try:
        # Only a mutable buffer makes fcntl.ioctl return the call's own result.
        number: int = _ioctl(listener, SECCOMP_IOCTL_NOTIF_ADDFD, bytearray(request))
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ESRCH):
            raise TargetGone from None
        raise SyscallError("ioctl(NOTIF_ADDFD)", error.errno or 0) from None
    return number
