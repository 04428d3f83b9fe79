"""Decoding trapped calls, with a target whose memory is a dict."""

from __future__ import annotations

import errno
import os
import socket
import struct

import pytest

from slim.broker import calls
from slim.broker.endpoints import Endpoint
from slim.broker.errors import SyscallError
from slim.broker.kernel import call_numbers, sockaddr
from slim.broker.kernel.call_numbers import I386
from slim.broker.kernel.seccomp_notify import Notification
from slim.broker.kernel.trapped_calls import MSG_FASTOPEN, TRAPPED_WITH_FASTOPEN

TID = 4321
POINTER = 0x7F0000001000
WIDE = 1 << 32
ARCH = call_numbers.architectures()[0]
NUMBERS = call_numbers.CALL_NUMBERS[ARCH]
only_x86_64 = pytest.mark.skipif(os.uname().machine != "x86_64", reason="numbers of x86_64")


class Memory:
    """What process_vm_readv reads; notes every read."""

    def __init__(self) -> None:
        self.at: dict[int, bytes] = {}
        self.reads: list[tuple[int, int, int]] = []

    def read(self, tid: int, address: int, length: int) -> bytes:
        self.reads.append((tid, address, length))
        data = self.at.get(address)
        if data is None or len(data) < length:
            raise SyscallError("process_vm_readv", errno.EFAULT)
        return data[:length]


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Memory:
    memory = Memory()
    monkeypatch.setattr(calls, "process_vm_readv", memory.read)
    return memory


def decode(name: str, *args: int, arch: int = ARCH) -> calls.SocketCall | None:
    a, b, c, d, e, f = (*args, *[0] * (6 - len(args)))
    number = call_numbers.CALL_NUMBERS.get(arch, NUMBERS)[name]
    return calls.decode(Notification(1, TID, number, arch, (a, b, c, d, e, f)))


@pytest.mark.parametrize(
    ("text", "family"),
    [
        ("10.1.0.2:80", socket.AF_INET),
        ("[fd00::2]:80", socket.AF_INET6),
        ("10.1.0.2:80", socket.AF_INET6),
    ],
    ids=["ipv4", "ipv6", "mapped"],
)
def test_connect_reads_the_destination_once(memory: Memory, text: str, family: int) -> None:
    endpoint = Endpoint.parse(text)
    memory.at[POINTER] = raw = sockaddr.encode(endpoint, family)
    assert decode("connect", 7, POINTER, len(raw)) == calls.Connect(7, family, endpoint)
    assert memory.reads == [(TID, POINTER, len(raw))]


def test_connect_to_a_path_has_no_destination(memory: Memory) -> None:
    memory.at[POINTER] = raw = struct.pack("=H", socket.AF_UNIX) + b"/run/x\0"
    assert decode("connect", 7, POINTER, len(raw)) == calls.Connect(7, socket.AF_UNIX, None)


def test_connect_to_nothing_asks_to_disconnect(memory: Memory) -> None:
    memory.at[POINTER] = bytes(16)
    assert decode("connect", 7, POINTER, 2) == calls.Connect(7, socket.AF_UNSPEC, None)


@pytest.mark.parametrize("length", [0, 1, 129, 1 << 31, 0xFFFFFFFF, WIDE, WIDE | 1])
def test_impossible_lengths_read_no_memory(memory: Memory, length: int) -> None:
    assert decode("connect", 7, POINTER, length) == calls.Connect(7, -1, None)
    assert memory.reads == []


def test_the_longest_address_is_read_whole(memory: Memory) -> None:
    memory.at[POINTER] = bytes(200)
    decode("connect", 7, POINTER, 128)
    assert memory.reads == [(TID, POINTER, 128)]


def test_a_length_is_an_int_whatever_the_upper_bits_say(memory: Memory) -> None:
    endpoint = Endpoint.parse("10.1.0.2:80")
    memory.at[POINTER] = sockaddr.encode(endpoint, socket.AF_INET)
    assert decode("connect", 7, POINTER, WIDE | 16) == calls.Connect(7, socket.AF_INET, endpoint)


def test_a_bad_pointer_raises_efault(memory: Memory) -> None:
    with pytest.raises(OSError) as caught:
        decode("connect", 7, POINTER, 16)
    assert caught.value.errno == errno.EFAULT
    with pytest.raises(OSError):
        decode("bind", 7, POINTER, 16)


@pytest.mark.parametrize(
    ("passed", "fd"), [(7, 7), (WIDE | 7, 7), (0xFFFFFFFF, -1), ((1 << 64) - 1, -1)]
)
def test_fds_are_ints(memory: Memory, passed: int, fd: int) -> None:
    assert decode("listen", passed, 5) == calls.Listen(fd, 5)
    assert memory.reads == []


def test_bind_reads_the_address(memory: Memory) -> None:
    memory.at[POINTER] = sockaddr.encode(Endpoint.parse("0.0.0.0:80"), socket.AF_INET)
    assert decode("bind", 7, POINTER, 16) == calls.Bind(7, Endpoint.parse("0.0.0.0:80"))


def test_calls_without_an_address_of_their_own_read_nothing(memory: Memory) -> None:
    backlog = (1 << 32) - 1
    assert decode("listen", 7, backlog) == calls.Listen(7, -1)
    assert decode("accept", 7, 1, 2, 99) == calls.Accept(7, 1, 2, 0)
    flags = socket.SOCK_NONBLOCK
    assert decode("accept4", 7, 1, 2, flags) == calls.Accept(7, 1, 2, flags)
    assert decode("getsockname", 7, 1, 2) == calls.GetName(7, 1, 2, peer=False)
    assert decode("getpeername", 7, 1, 2) == calls.GetName(7, 1, 2, peer=True)
    assert decode("setsockopt", 7, 6, WIDE | 19) == calls.SetOption(7)
    assert decode("getsockopt", 7, 41, 26, 1, 2) == calls.GetV6Only(7, 1, 2)
    for name, index in TRAPPED_WITH_FASTOPEN.items():
        args = (7, *[0] * (index - 1))
        assert decode(name, *args, MSG_FASTOPEN | WIDE) == calls.FastOpenSend(7)
        assert decode(name, *args, socket.MSG_DONTWAIT) is None
    assert memory.reads == []


def test_options_that_only_a_profile_traps_are_not_decoded(memory: Memory) -> None:
    """An OCI profile tells them by their number, whatever the level."""
    assert decode("setsockopt", 7, 99, 19) is None
    assert decode("getsockopt", 7, 1, 26, 1, 2) is None
    assert memory.reads == []


@pytest.mark.parametrize(
    ("passed", "read"),
    [(8, 8), (4, 4), (3, 3), (0, 0), (9, 4), (1 << 20, 4), (0xFFFFFFFF, 0), (WIDE | 4, 4)],
)
def test_the_value_of_a_limit_is_read_as_far_as_the_kernel_would(
    memory: Memory, passed: int, read: int
) -> None:
    memory.at[POINTER] = bytes(range(8))
    asked = decode("setsockopt", 7, WIDE | socket.SOL_SOCKET, 47, POINTER, passed)
    assert asked == calls.SetLimit(7, socket.SOL_SOCKET, 47, bytes(range(8))[:read])


def test_epoll_create1_passes_its_flags_on() -> None:
    assert decode("epoll_create1", os.O_CLOEXEC) == calls.CreateEpoll(os.O_CLOEXEC)


@pytest.mark.skipif("epoll_create" not in NUMBERS, reason="this architecture has none")
@pytest.mark.parametrize(
    ("size", "flags"), [(1, 0), (1024, 0), (0, -1), (0xFFFFFFFF, -1), (WIDE, -1)]
)
def test_epoll_create_wants_a_positive_size(size: int, flags: int) -> None:
    assert decode("epoll_create", size) == calls.CreateEpoll(flags)


def decode_i386(name: str, *args: int) -> calls.SocketCall | None:
    return decode(name, *args, arch=I386)


@only_x86_64
def test_calls_of_i386_have_the_native_arguments(memory: Memory) -> None:
    server = Endpoint.parse("10.1.0.2:80")
    memory.at[0x1000] = sockaddr.encode(server, socket.AF_INET)
    assert decode_i386("connect", 7, 0x1000, 16) == calls.Connect(7, socket.AF_INET, server)
    assert decode_i386("bind", 7, 0x1000, 16) == calls.Bind(7, server)
    assert memory.reads == [(TID, 0x1000, 16)] * 2
    assert decode_i386("listen", 7, 5) == calls.Listen(7, 5)
    accept = calls.Accept(7, 0x1000, 0x2000, 0x800)
    assert decode_i386("accept4", 7, 0x1000, 0x2000, 0x800) == accept
    name = calls.GetName(7, 0x1000, 0x2000, peer=False)
    assert decode_i386("getsockname", 7, 0x1000, 0x2000) == name
    assert decode_i386("sendmsg", 7, 0x1000, MSG_FASTOPEN) == calls.FastOpenSend(7)
    assert decode_i386("setsockopt", 7, socket.SOL_SOCKET, 25) == calls.SetOption(7)


@only_x86_64
@pytest.mark.parametrize(
    ("which", "count", "found"),
    [
        (4, 2, calls.Listen(-1, 6)),
        (5, 3, calls.Accept(-1, 6, 26, 0)),
        (6, 3, calls.GetName(-1, 6, 26, peer=False)),
        (7, 3, calls.GetName(-1, 6, 26, peer=True)),
        (11, 6, calls.FastOpenSend(-1)),
        (14, 5, None),
        (15, 5, None),
        (16, 3, None),
        (18, 4, calls.Accept(-1, 6, 26, MSG_FASTOPEN)),
        (20, 4, calls.FastOpenSend(-1)),
    ],
)
def test_arguments_of_socketcall_are_read_once(
    memory: Memory, which: int, count: int, found: calls.SocketCall | None
) -> None:
    # What the kernel does not read need not be readable.
    words = (0xFFFFFFFF, 6, 26, MSG_FASTOPEN, 0x3000, 16)
    memory.at[0x5000] = struct.pack("=6I", *words)[: 4 * count]
    assert decode_i386("socketcall", which, 0x5000) == found
    assert memory.reads == [(TID, 0x5000, 4 * count)]


@only_x86_64
def test_connect_by_socketcall(memory: Memory) -> None:
    server = Endpoint.parse("10.1.0.2:80")
    memory.at[0x5000] = struct.pack("=3I", 7, 0x1000, 16)
    memory.at[0x1000] = sockaddr.encode(server, socket.AF_INET)
    connect = calls.Connect(7, socket.AF_INET, server)
    assert decode_i386("socketcall", 3, 0x5000) == connect
    assert memory.reads == [(TID, 0x5000, 12), (TID, 0x1000, 16)]


@only_x86_64
def test_arguments_of_socketcall_that_cannot_be_read(memory: Memory) -> None:
    with pytest.raises(SyscallError) as error:
        decode_i386("socketcall", 5, 0x5000)
    assert error.value.errno == errno.EFAULT


@only_x86_64
def test_the_fd_of_a_socketcall_is_not_known_without_its_memory() -> None:
    number = call_numbers.CALL_NUMBERS[I386]["socketcall"]
    assert calls.fd_of(Notification(1, TID, number, I386, (3, 0x5000, 0, 0, 0, 0))) is None
    assert calls.fd_of(Notification(1, TID, NUMBERS["connect"], ARCH, (7, 0, 0, 0, 0, 0))) == 7


@only_x86_64
@pytest.mark.parametrize("which", [0, 1, 8, 9, 10, 12, 13, 17, 19, 21, 1 << 31])
def test_other_socketcalls_are_not_read(memory: Memory, which: int) -> None:
    assert decode_i386("socketcall", which, 0x5000) is None
    assert memory.reads == []


@only_x86_64
def test_no_call_of_i386_is_taken_for_the_native_one_of_its_number(memory: Memory) -> None:
    numbers = {*NUMBERS.values()} - {*call_numbers.CALL_NUMBERS[I386].values()}
    assert {42, 43, 49, 50, 51} <= numbers
    for number in numbers:
        asked = Notification(1, TID, number, I386, (7, 0x1000, 16, MSG_FASTOPEN, 0, 0))
        assert calls.decode(asked) is None
    assert memory.reads == []


def test_other_architectures_and_other_calls_are_not_decoded(memory: Memory) -> None:
    assert decode("connect", 7, POINTER, 16, arch=0xC0000032) is None
    assert calls.decode(Notification(1, TID, 0x7FFF, ARCH, (7, POINTER, 16, 0, 0, 0))) is None
    assert memory.reads == []


def test_every_known_number_is_decoded() -> None:
    for names in call_numbers.CALL_NUMBERS.values():
        assert set(names) <= set(calls._BY_NAME)
        assert len(set(names.values())) == len(names)
