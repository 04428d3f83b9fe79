"""The seccomp filter that slimd offers to slim-run: which calls are trapped, refused, left alone.

Some facts about this filter:

- The kernel truncates int arguments to 32 bits after the filter saw all 64: every comparison is
  masked, or setting bit 32 would pass it.
- The compat architecture (i386, also by int 0x80 of a native program) has the same rules, or it
  would be a way round policy. Of socketcall, whose arguments are in memory, what a native call is
  trapped for by an argument is always trapped. Any other architecture (x32) gets ENOSYS.
- io_uring does socket calls that no filter sees; without it programs use the calls themselves.
- What runs often per connection is never here: close, dup, fcntl, fork, exit, read, write,
  plain send and recv, poll, epoll_wait.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any, Literal

from slim.broker.errors import KernelFeatureMissing
from slim.broker.kernel.call_numbers import COMPAT, I386, SOCKETCALLS
from slim.broker.kernel.pacing import LIMIT_OPTIONS
from slim.broker.kernel.trapped_calls import (
    MSG_FASTOPEN,
    REFUSED,
    TRAPPED,
    TRAPPED_OPTIONS,
    TRAPPED_READS,
    TRAPPED_WITH_FASTOPEN,
)

if TYPE_CHECKING:
    from types import ModuleType

NAMES = ("getpeername", "getsockname")
"""Of TRAPPED: what the kernel guard answers natively."""

INTERFACE_REQUESTS = (
    (0xFFFFFFF8, 0x8908),
    *((0xFFFFFFF0, request) for request in range(0x8910, 0x8A00, 0x10)),
)
"""(mask, value) of the SIOC* requests of ioctl(2) that show or change a namespace's interfaces and
routes, SIOCGSKNS among them (linux/sockios.h). 0x8900 to 0x8907 are the socket's own."""

_ALL_BITS = 0xFFFFFFFF
_HIGHEST_PRIORITY = 255


def build_filter(guard: Literal["portable", "kernel"], *, limited: bool = False) -> bytes:
    """The filter for a guard, as an array of `struct sock_filter` in this machine's byte order.

    That of a `limited` workload traps the options too by which a program could undo its limits.

    Raises KernelFeatureMissing when libseccomp is absent, or too old to know notifications.
    """
    seccomp = _load_libseccomp()
    try:
        options = TRAPPED_OPTIONS + LIMIT_OPTIONS if limited else TRAPPED_OPTIONS
        program = _new(seccomp)
        _add_rules(seccomp, program, options, guard)
        compat = COMPAT.get(seccomp.system_arch())
        if compat is not None:
            # libseccomp keeps one list of rules for all architectures of a filter, and socketcall
            # needs more: two filters, merged.
            other = _new(seccomp)
            other.remove_arch(seccomp.Arch.NATIVE)
            other.add_arch(compat)
            _add_rules(seccomp, other, options, guard)
            if compat == I386:
                _add_socketcalls(seccomp, other)
            program.merge(other)
        return _export(program)
    except OSError as error:
        raise KernelFeatureMissing(
            f"libseccomp could not build the filter: {error.strerror}",
            hint="Slim needs libseccomp 2.5 or later and seccomp notifications (Linux 5.0)",
        ) from error


def _new(seccomp: ModuleType) -> Any:
    program = seccomp.SyscallFilter(seccomp.ALLOW)
    # Merging wants the same attributes on both sides.
    program.set_attr(seccomp.Attr.ACT_BADARCH, seccomp.ERRNO(errno.ENOSYS))
    return program


def _add_rules(
    seccomp: ModuleType, program: Any, options: tuple[tuple[int, int], ...], guard: str
) -> None:
    is_guarded = guard == "kernel"
    for name in TRAPPED:
        if not (is_guarded and name in NAMES):
            program.add_rule(seccomp.NOTIFY, name)
    if is_guarded:
        for mask, value in INTERFACE_REQUESTS:
            program.add_rule(seccomp.NOTIFY, "ioctl", _masked(seccomp, 1, mask, value))
    for name, argument in TRAPPED_WITH_FASTOPEN.items():
        program.add_rule(
            seccomp.NOTIFY, name, _masked(seccomp, argument, MSG_FASTOPEN, MSG_FASTOPEN)
        )
    for level, option in options:
        program.add_rule(
            seccomp.NOTIFY,
            "setsockopt",
            _masked(seccomp, 1, _ALL_BITS, level),
            _masked(seccomp, 2, _ALL_BITS, option),
        )
    for level, option in TRAPPED_READS:
        program.add_rule(
            seccomp.NOTIFY,
            "getsockopt",
            _masked(seccomp, 1, _ALL_BITS, level),
            _masked(seccomp, 2, _ALL_BITS, option),
        )
    for name in REFUSED:
        program.add_rule(seccomp.ERRNO(errno.ENOSYS), name)
    # The kernel answers calls without argument checks from a bitmap (5.11), but runs the filter
    # for these on every send: they come first.
    for name in TRAPPED_WITH_FASTOPEN:
        program.syscall_priority(name, _HIGHEST_PRIORITY)


def _add_socketcalls(seccomp: ModuleType, program: Any) -> None:
    for which, (name, _) in SOCKETCALLS.items():
        # libseccomp itself makes rules of those without arguments.
        if name not in TRAPPED:
            program.add_rule(seccomp.NOTIFY, "socketcall", _masked(seccomp, 0, _ALL_BITS, which))


def _masked(seccomp: ModuleType, argument: int, mask: int, value: int) -> Any:
    return seccomp.Arg(argument, seccomp.MASKED_EQ, mask, value)


def _export(program: Any) -> bytes:
    with open(os.memfd_create("slim-filter", os.MFD_CLOEXEC), "w+b") as memory:
        program.export_bpf(memory)
        memory.seek(0)
        return memory.read()


def _load_libseccomp() -> ModuleType:
    try:
        # Only slimd needs it: it looks for the library by running other programs.
        import pyseccomp
    except (ImportError, RuntimeError) as error:
        raise KernelFeatureMissing(
            f"libseccomp could not be loaded: {error}",
            hint="install libseccomp (Debian: libseccomp2) and pyseccomp",
        ) from error
    module: ModuleType = pyseccomp
    return module
