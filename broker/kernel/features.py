"""What this kernel and this process can do, found out by doing it where that is cheap."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import socket
from dataclasses import dataclass
from pathlib import Path

from slim.broker.errors import SyscallError
from slim.broker.kernel.libc import NR_seccomp, libc
from slim.broker.kernel.namespaces import SO_NETNS_COOKIE
from slim.broker.kernel.pidfd import pidfd_getfd, pidfd_open

# From linux/seccomp.h, linux/capability.h, sys/timex.h.
CAPABILITIES = {
    "CAP_CHOWN": 0,
    "CAP_NET_BIND_SERVICE": 10,
    "CAP_NET_ADMIN": 12,
    "CAP_SYS_CHROOT": 18,
    "CAP_SYS_PTRACE": 19,
    "CAP_SYS_ADMIN": 21,
    "CAP_BPF": 39,
}
SECCOMP_GET_ACTION_AVAIL = 2
SECCOMP_GET_NOTIF_SIZES = 3
SECCOMP_RET_USER_NOTIF = 0x7FC00000
STA_UNSYNC = 0x0040
TIME_ERROR = 5


def kernel_release() -> tuple[int, int]:
    """uname(2): major and minor version of the running kernel."""
    parts = platform.release().split(".")
    digits = [int("".join(c for c in part if c.isdigit()) or 0) for part in parts[:2]]
    return digits[0], digits[1] if len(digits) > 1 else 0


def has_user_notification() -> bool:
    """SECCOMP_GET_ACTION_AVAIL of seccomp(2): is SECCOMP_RET_USER_NOTIF there? Linux 5.0."""
    action = ctypes.c_uint32(SECCOMP_RET_USER_NOTIF)
    result: int = libc.syscall(NR_seccomp, SECCOMP_GET_ACTION_AVAIL, 0, ctypes.byref(action))
    return result == 0


def has_pidfd_getfd() -> bool:
    """pidfd_getfd(2), Linux 5.6: tried on this process."""
    try:
        pidfd = pidfd_open(os.getpid())
    except SyscallError:
        return False
    try:
        os.close(pidfd_getfd(pidfd, pidfd))
    except SyscallError as error:
        return error.errno not in (errno.ENOSYS, errno.EPERM)
    finally:
        os.close(pidfd)
    return True


def has_pidfd_thread() -> bool:
    """PIDFD_THREAD of pidfd_open(2), Linux 6.9: tried on this thread."""
    try:
        os.close(pidfd_open(os.getpid(), thread=True))
    except SyscallError:
        return False
    return True


def has_netns_cookie() -> bool:
    """SO_NETNS_COOKIE of socket(7), Linux 5.14: tried on a socket."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8)
        except OSError:
            return False
    return True


def effective_capabilities() -> frozenset[str]:
    """CapEff of proc_pid_status(5): those of CAPABILITIES that this process has."""
    mask = 0
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            mask = int(line.split()[1], 16)
    return frozenset(name for name, bit in CAPABILITIES.items() if mask >> bit & 1)


def read_sysctl(name: str) -> str | None:
    """sysctl(8) as a file below /proc/sys, Linux 2.2; None when this kernel has it not."""
    try:
        return Path("/proc/sys", *name.split(".")).read_text().strip()
    except OSError:
        return None


def cgroup2_mount() -> str | None:
    """Where cgroup v2 is mounted (proc_pid_mounts(5)), Linux 4.5; also in hybrid set-ups."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        fields = line.split()
        if len(fields) > 2 and fields[2] == "cgroup2":
            return fields[1]
    return None


@dataclass(frozen=True, slots=True)
class Clock:
    state: int
    status: int

    @property
    def is_synchronised(self) -> bool:
        return self.state != TIME_ERROR and not self.status & STA_UNSYNC


def read_clock() -> Clock:
    """adjtimex(2), Linux 2.0, with no change asked for: is the clock synchronised?"""
    # struct timex: modes is the first int, status comes after four longs; 256 bytes hold it.
    buffer = (ctypes.c_long * 32)()
    state: int = libc.adjtimex(ctypes.byref(buffer))
    status = ctypes.cast(buffer, ctypes.POINTER(ctypes.c_int))[10]
    return Clock(state, status)
