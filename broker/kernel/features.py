"""What this kernel and this process can do, found out by doing it where that is cheap.

No probe changes anything outside a thread of its own. Its callers are slimd, when it starts, and
the doctor.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import re
import socket
import struct
import threading
from dataclasses import dataclass
from pathlib import Path

from slim.broker.errors import KernelFeatureMissing, SyscallError, TargetGone
from slim.broker.kernel import pacing, seccomp_notify
from slim.broker.kernel.libc import NR_seccomp, libc
from slim.broker.kernel.namespaces import SO_NETNS_COOKIE
from slim.broker.kernel.pidfd import pidfd_getfd, pidfd_open
from slim.broker.kernel.process_memory import process_vm_readv
from slim.broker.kernel.seccomp_install import install_filter, set_no_new_privs

# From linux/seccomp.h, linux/capability.h, linux/net.h, sys/timex.h.
CAPABILITIES = {
    "CAP_CHOWN": 0,
    "CAP_NET_BIND_SERVICE": 10,
    "CAP_NET_ADMIN": 12,
    "CAP_NET_RAW": 13,
    "CAP_SYS_CHROOT": 18,
    "CAP_SYS_PTRACE": 19,
    "CAP_SYS_ADMIN": 21,
    "CAP_BPF": 39,
}
SECCOMP_GET_ACTION_AVAIL = 2
SECCOMP_GET_NOTIF_SIZES = 3
SECCOMP_RET_ALLOW = 0x7FFF0000
SECCOMP_RET_USER_NOTIF = 0x7FC00000
SO_ACCEPTCON = 1 << 16
STA_UNSYNC = 0x0040
TIME_ERROR = 5

# One struct sock_filter: BPF_RET | BPF_K, allow.
_ALLOW_ALL = struct.pack("=HBBI", 0x06, 0, 0, SECCOMP_RET_ALLOW)
_NOTIF_SIZES = struct.Struct("=HHH")
NOTIF_SIZES = (80, 24, 64)
"""Sizes of struct seccomp_notif, seccomp_notif_resp and seccomp_data that seccomp_notify packs."""


def kernel_release() -> tuple[int, int]:
    """uname(2): major and minor version of the running kernel."""
    numbers = re.match(r"(\d+)(?:\.(\d+))?", platform.release())
    if numbers is None:
        return 0, 0
    return int(numbers[1]), int(numbers[2] or 0)


def has_user_notification() -> bool:
    """SECCOMP_GET_ACTION_AVAIL of seccomp(2): is SECCOMP_RET_USER_NOTIF there? Linux 5.0."""
    action = ctypes.c_uint32(SECCOMP_RET_USER_NOTIF)
    result: int = libc.syscall(NR_seccomp, SECCOMP_GET_ACTION_AVAIL, 0, ctypes.byref(action))
    return result == 0


def read_notif_sizes() -> tuple[int, int, int]:
    """SECCOMP_GET_NOTIF_SIZES of seccomp(2), Linux 5.0: as NOTIF_SIZES; zeros when refused."""
    buffer = ctypes.create_string_buffer(_NOTIF_SIZES.size)
    if libc.syscall(NR_seccomp, SECCOMP_GET_NOTIF_SIZES, 0, buffer) < 0:
        return (0, 0, 0)
    notification, response, data = _NOTIF_SIZES.unpack(buffer.raw)
    return notification, response, data


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenerFeatures:
    """What a seccomp listener can do here; `error` says why there was none to ask."""

    adds_fds: bool = False
    """ADDFD with SETFD, Linux 5.9."""
    wakes_in_sync: bool = False
    """SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP, Linux 6.6."""
    error: str = ""


def probe_listener() -> ListenerFeatures:
    """Install a filter that allows everything, in a thread that ends at once, and ask its listener.

    A filter and no_new_privs belong to a thread (seccomp(2), prctl(2)); both end with it.
    """
    found: list[ListenerFeatures] = []
    thread = threading.Thread(target=lambda: found.append(_ask_listener()), name="seccomp-probe")
    thread.start()
    thread.join()
    return found[0]


def _ask_listener() -> ListenerFeatures:
    try:
        set_no_new_privs()
        listener = install_filter(_ALLOW_ALL)
    except SyscallError as error:
        return ListenerFeatures(error=str(error))
    try:
        return ListenerFeatures(
            adds_fds=_knows_addfd(listener),
            wakes_in_sync=seccomp_notify.set_sync_wake_up(listener),
        )
    finally:
        os.close(listener)


def _knows_addfd(listener: int) -> bool:
    # No call waits, so a kernel that knows the request finds no notification of that id (ENOENT);
    # one that does not know the ioctl gives EINVAL before it looks.
    try:
        seccomp_notify.replace_fd(listener, 0, listener, listener, cloexec=True)
    except TargetGone:
        return True
    except SyscallError:
        return False
    return False


def can_pace() -> bool:
    """SO_MAX_PACING_RATE of 64 bits, Linux 4.20: set on a TCP socket and read again."""
    rate = 1 << 33
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as sock:
        try:
            pacing.set_rate(sock, rate)
            return pacing.read_rate(sock) == rate
        except OSError:
            return False


def can_read_memory() -> bool:
    """process_vm_readv(2), Linux 3.2: tried on this process."""
    buffer = ctypes.create_string_buffer(b"slim")
    try:
        return process_vm_readv(os.getpid(), ctypes.addressof(buffer), 4) == b"slim"
    except SyscallError:
        return False


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


def require() -> None:
    """KernelFeatureMissing unless this kernel has what Slim cannot do without."""
    listener = probe_listener()
    if listener.error:
        raise KernelFeatureMissing(
            f"no seccomp listener can be made: {listener.error}",
            hint="slimctl doctor says what is missing",
        )
    needed = {
        "SECCOMP_IOCTL_NOTIF_ADDFD": listener.adds_fds,
        "seccomp notifications as Slim knows them": read_notif_sizes() == NOTIF_SIZES,
        "pidfd_getfd(2)": has_pidfd_getfd(),
        "process_vm_readv(2)": can_read_memory(),
        "SO_NETNS_COOKIE": has_netns_cookie(),
    }
    missing = [name for name, there in needed.items() if not there]
    if missing:
        raise KernelFeatureMissing(
            f"this kernel ({platform.release()}), or what confines slimd, lacks "
            + ", ".join(missing),
            hint="Slim needs Linux 5.14; slimctl doctor tells more",
        )


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


def is_unix_listener(path: Path) -> bool:
    """Whether a listening socket is bound there (proc_net(5), unix), in this network namespace."""
    for line in Path("/proc/net/unix").read_text(errors="surrogateescape").splitlines()[1:]:
        # Num RefCount Protocol Flags Type St Inode Path
        fields = line.split(maxsplit=7)
        # Connections that wait in its queue have its name, too.
        if len(fields) == 8 and fields[7] == str(path) and int(fields[3], 16) & SO_ACCEPTCON:
            return True
    return False


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
