"""What the portable filter says to a system call, by running it in support.bpf."""

from __future__ import annotations

import errno
import os
import socket

import pyseccomp
import pytest

from slim.broker import calls
from slim.broker.kernel import call_numbers, pacing, trapped_calls
from slim.broker.kernel.seccomp_filter import NAMES, build_filter
from slim.broker.kernel.trapped_calls import MSG_FASTOPEN
from support.bpf import verdict

NOTIFY = pyseccomp.NOTIFY
ALLOW = pyseccomp.ALLOW
ENOSYS = pyseccomp.ERRNO(errno.ENOSYS)
NATIVE = pyseccomp.system_arch()
BIT_32 = 1 << 32

only_x86_64 = pytest.mark.skipif(os.uname().machine != "x86_64", reason="numbers of x86_64")


@pytest.fixture(scope="module")
def program() -> bytes:
    return build_filter("portable")


def native(program: bytes, name: str, *args: int) -> int:
    number = pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, name)
    return verdict(program, arch=NATIVE, nr=number, args=args)


@pytest.mark.parametrize("name", trapped_calls.TRAPPED)
def test_socket_calls_are_trapped_whatever_their_arguments(program: bytes, name: str) -> None:
    if pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, name) < 0:
        pytest.skip(f"this architecture has no {name}")
    assert native(program, name) == NOTIFY
    assert native(program, name, 7, 2**64 - 1, BIT_32) == NOTIFY


def test_what_is_trapped_is_what_traps_can_decode(program: bytes) -> None:
    conditional = {*trapped_calls.TRAPPED_WITH_FASTOPEN, "setsockopt", "getsockopt", "ioctl"}
    assert {*trapped_calls.TRAPPED, *conditional, "socketcall"} == set(calls._BY_NAME)
    for number in call_numbers.CALL_NUMBERS[NATIVE].values():
        flags = (0, 1, MSG_FASTOPEN, MSG_FASTOPEN)
        bind_to_device = (3, socket.SOL_SOCKET, 25)
        v6only = (3, socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
        said = {
            verdict(program, arch=NATIVE, nr=number, args=args)
            for args in (flags, bind_to_device, v6only)
        } | {verdict(build_filter("kernel"), arch=NATIVE, nr=number, args=(3, 0x8912))}
        assert NOTIFY in said


@pytest.mark.parametrize(("level", "option"), pacing.LIMIT_OPTIONS)
def test_options_that_undo_limits_are_trapped_in_limited_workloads_only(
    program: bytes, level: int, option: int
) -> None:
    limited = build_filter("portable", limited=True)
    assert native(program, "setsockopt", 3, level, option) == ALLOW
    assert native(limited, "setsockopt", 3, level, option) == NOTIFY
    assert native(limited, "setsockopt", 3, level | BIT_32, option | BIT_32) == NOTIFY
    assert native(limited, "setsockopt", 3, socket.IPPROTO_TCP, socket.TCP_NODELAY) == ALLOW
    assert native(limited, "setsockopt", 3, socket.IPPROTO_TCP, socket.TCP_CONGESTION) == ALLOW


@pytest.mark.parametrize(("name", "argument"), trapped_calls.TRAPPED_WITH_FASTOPEN.items())
def test_sends_are_trapped_only_with_fastopen(program: bytes, name: str, argument: int) -> None:
    def sent_with(flags: int) -> int:
        args = [0] * 6
        args[argument] = flags
        return native(program, name, *args)

    assert sent_with(0) == ALLOW
    assert sent_with(0xFFFFFFFF & ~MSG_FASTOPEN) == ALLOW
    assert sent_with(MSG_FASTOPEN) == NOTIFY
    assert sent_with(MSG_FASTOPEN | socket.MSG_DONTWAIT | BIT_32) == NOTIFY
    # The other arguments are pointers and lengths, where that bit means nothing.
    others = [MSG_FASTOPEN] * 6
    others[argument] = 0
    assert native(program, name, *others) == ALLOW


@pytest.mark.parametrize(("level", "option"), trapped_calls.TRAPPED_OPTIONS)
def test_dangerous_options_are_trapped_also_with_high_bits_set(
    program: bytes, level: int, option: int
) -> None:
    assert native(program, "setsockopt", 3, level, option) == NOTIFY
    assert native(program, "setsockopt", 3, level | BIT_32, option | 1 << 63) == NOTIFY


def test_common_options_are_not_trapped(program: bytes) -> None:
    common = {
        (socket.SOL_SOCKET, socket.SO_REUSEADDR),
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE),
        (socket.IPPROTO_TCP, socket.TCP_NODELAY),
        (socket.IPPROTO_IPV6, socket.IPV6_V6ONLY),
        (socket.IPPROTO_IP, socket.IP_TOS),
        # The numbers of dangerous options at levels where they are others.
        (socket.IPPROTO_TCP, 25),
        (socket.SOL_SOCKET, 19),
    }
    assert {native(program, "setsockopt", 3, *option) for option in common} == {ALLOW}


@pytest.mark.parametrize("name", ["io_uring_enter", "io_uring_register", "io_uring_setup"])
def test_io_uring_is_absent(program: bytes, name: str) -> None:
    assert native(program, name) == ENOSYS


@pytest.mark.parametrize(
    "name",
    [
        "close",
        "dup",
        "dup3",
        "fcntl",
        "clone",
        "exit_group",
        "read",
        "write",
        "writev",
        "recvfrom",
        "recvmsg",
        "epoll_pwait",
        "epoll_ctl",
        "ppoll",
        "socket",
        "ioctl",
        "seccomp",
        "shutdown",
    ],
)
def test_everything_else_is_left_alone(program: bytes, name: str) -> None:
    assert native(program, name, MSG_FASTOPEN, 1, 25, MSG_FASTOPEN) == ALLOW


def i386(program: bytes, name: str, *args: int) -> int:
    # libseccomp has numbers of its own for what socketcall does, too.
    number = call_numbers.CALL_NUMBERS[call_numbers.I386][name]
    return verdict(program, arch=pyseccomp.Arch.X86, nr=number, args=args)


@only_x86_64
def test_i386_has_the_native_rules(program: bytes) -> None:
    for name in set(trapped_calls.TRAPPED) - {"accept"}:
        assert i386(program, name, 7) == NOTIFY, name
    for name, argument in trapped_calls.TRAPPED_WITH_FASTOPEN.items():
        args = [0] * argument
        assert i386(program, name, *args, MSG_FASTOPEN) == NOTIFY, name
        assert i386(program, name, *args, socket.MSG_DONTWAIT) == ALLOW, name
    for option in trapped_calls.TRAPPED_OPTIONS:
        assert i386(program, "setsockopt", 3, *option) == NOTIFY
    assert i386(program, "setsockopt", 3, socket.IPPROTO_TCP, socket.TCP_NODELAY) == ALLOW
    for name in trapped_calls.REFUSED:
        number = pyseccomp.resolve_syscall(pyseccomp.Arch.X86, name)
        assert number > 0
        assert verdict(program, arch=pyseccomp.Arch.X86, nr=number) == ENOSYS, name


@only_x86_64
def test_socketcalls_are_trapped_that_may_be_a_trapped_call(program: bytes) -> None:
    trapped = {which for which in range(25) if i386(program, "socketcall", which) == NOTIFY}
    assert trapped == {*call_numbers.SOCKETCALLS}


@only_x86_64
def test_the_kernel_guard_leaves_names_of_i386_to_the_kernel() -> None:
    program = build_filter("kernel")
    assert i386(program, "accept4", 7) == i386(program, "socketcall", 5) == NOTIFY
    assert i386(program, "getsockname", 7) == i386(program, "socketcall", 6) == ALLOW
    assert i386(program, "getpeername", 7) == i386(program, "socketcall", 7) == ALLOW
    assert i386(program, "ioctl", 7, 0x8912) == NOTIFY


@only_x86_64
def test_x32_and_unknown_architectures_get_enosys(program: bytes) -> None:
    x32_bit = 0x40000000
    for number in (0, 42, 39, 425, 512):
        assert verdict(program, arch=NATIVE, nr=x32_bit | number) == ENOSYS
    assert verdict(program, arch=pyseccomp.Arch.AARCH64, nr=203) == ENOSYS


@only_x86_64
def test_a_call_that_a_tracer_skips_is_let_through(program: bytes) -> None:
    assert verdict(program, arch=NATIVE, nr=0xFFFFFFFF) == ALLOW


def test_sends_are_judged_within_few_instructions(program: bytes) -> None:
    """They run the filter every time, and so come before the other calls."""
    first = [int.from_bytes(program[at + 4 : at + 8], "little") for at in range(0, 20 * 8, 8)]
    for name in trapped_calls.TRAPPED_WITH_FASTOPEN:
        assert pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, name) in first


def test_the_kernel_guard_leaves_names_alone_and_traps_interface_requests() -> None:
    program = build_filter("kernel")
    for name in NAMES:
        number = pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, name)
        assert verdict(program, arch=NATIVE, nr=number) == ALLOW
    siocatmark, siocgifconf, siocgskns, fionread = 0x8905, 0x8912, 0x894C, 0x541B
    number = pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, "ioctl")
    for request, expected in (
        (siocatmark, ALLOW),
        (fionread, ALLOW),
        (siocgifconf, NOTIFY),
        (siocgskns, NOTIFY),
        (siocgskns | 1 << 32, NOTIFY),
    ):
        assert verdict(program, arch=NATIVE, nr=number, args=(3, request)) == expected
