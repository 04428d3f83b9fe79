"""A profile with Slim's calls trapped: run against the one that it was made of, call by call."""

from __future__ import annotations

import errno
import itertools
import json
import os
from typing import TYPE_CHECKING, Any

import pyseccomp
import pytest

from slim.broker.errors import ConfigError
from slim.broker.kernel.call_numbers import CALL_NUMBERS, I386, SOCKETCALLS
from slim.broker.kernel.pacing import LIMIT_OPTIONS
from slim.broker.kernel.trapped_calls import (
    MSG_FASTOPEN,
    REFUSED,
    TRAPPED,
    TRAPPED_OPTIONS,
    TRAPPED_READS,
    TRAPPED_WITH_FASTOPEN,
)
from slim.broker.oci.profile import add_slim
from support.bpf import verdict
from support.oci_filters import ARCHITECTURES, build

if TYPE_CHECKING:
    from collections.abc import Iterator

NATIVE = pyseccomp.system_arch()
ENOSYS = pyseccomp.ERRNO(errno.ENOSYS)
SOCKET = "/run/slim/oci.sock"
BIT_32 = 1 << 32
SLIM = {*TRAPPED, *TRAPPED_WITH_FASTOPEN, "setsockopt", "getsockopt", "socketcall"}
OPTIONS = {"setsockopt": TRAPPED_OPTIONS + LIMIT_OPTIONS, "getsockopt": TRAPPED_READS}
CAPABLE = frozenset({"CAP_SYS_ADMIN", "CAP_AUDIT_WRITE"})

# The shape of Docker's and Podman's default profiles, with a few calls of each kind.
DEFAULT: dict[str, Any] = {
    "defaultAction": "SCMP_ACT_ERRNO",
    "defaultErrnoRet": 1,
    "archMap": [{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]}],
    "syscalls": [
        {
            "names": [*sorted(SLIM), *REFUSED, "read", "close", "futex"],
            "action": "SCMP_ACT_ALLOW",
            "comment": "kept",
        },
        {
            "names": ["personality"],
            "action": "SCMP_ACT_ALLOW",
            "args": [{"index": 0, "value": 8, "valueTwo": 0, "op": "SCMP_CMP_EQ"}],
        },
        {"names": ["bpf"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_ADMIN"]}},
        {
            "names": ["bpf", "setns"],
            "action": "SCMP_ACT_ERRNO",
            "errnoRet": 13,
            "excludes": {"caps": ["CAP_SYS_ADMIN"]},
        },
    ],
}


def changed(base: dict[str, Any], metadata: str = "") -> dict[str, Any]:
    result: dict[str, Any] = json.loads(add_slim(json.dumps(base).encode(), SOCKET, metadata))
    return result


def bases() -> Iterator[Any]:
    yield pytest.param(DEFAULT, id="like-the-default")
    yield pytest.param({"defaultAction": "SCMP_ACT_ALLOW"}, id="open")
    yield pytest.param(
        {
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{"names": ["listen", "bpf"], "action": "SCMP_ACT_ERRNO"}],
        },
        id="open-without-listen",
    )
    yield pytest.param(
        {
            "defaultAction": "SCMP_ACT_ERRNO",
            "syscalls": [{"name": "connect", "action": "SCMP_ACT_ALLOW"}],
        },
        id="connect-only",
    )


def arguments() -> Iterator[tuple[int, ...]]:
    """Levels, options and flags, with bits that the kernel does not read."""
    words = (
        0,
        1,
        6,
        8,
        12,
        19,
        25,
        26,
        41,
        47,
        67,
        75,
        127,
        128,
        511,
        512,
        MSG_FASTOPEN,
        MSG_FASTOPEN | 8,
        2**64 - 1,
    )
    for second, third in itertools.product(words, words):
        yield (3, second, third, 0)
        yield (3, second | BIT_32, third | BIT_32, third)


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="architectures of x86_64")
@pytest.mark.parametrize("base", [*bases()])
@pytest.mark.parametrize("capabilities", [frozenset(), CAPABLE], ids=["plain", "capable"])
def test_nothing_is_loosened_and_only_slims_calls_are_trapped(
    base: dict[str, Any], capabilities: frozenset[str]
) -> None:
    before = build({"syscalls": [], **_with_names(base)}, capabilities)
    after = build(changed(base), capabilities)
    names = {*SLIM, *REFUSED, "read", "personality", "bpf", "setns", "mount", "socket", "futex"}
    trapped = set()
    for architecture in (NATIVE, *ARCHITECTURES["x86_64"]):
        for name in names:
            number = pyseccomp.resolve_syscall(architecture, name)
            if number < 0:
                continue
            for args in arguments():
                old = verdict(before, arch=_audit(architecture), nr=number, args=args)
                new = verdict(after, arch=_audit(architecture), nr=number, args=args)
                if name in REFUSED:
                    assert new == ENOSYS
                elif new != old:
                    assert (old, new) == (pyseccomp.ALLOW, pyseccomp.NOTIFY), (name, args)
                    assert name in SLIM
                    trapped.add(name)
    # That of i386 is trapped if a call is that it may be.
    native_calls = SLIM - {"socketcall"}
    assert trapped & native_calls == {name for name in native_calls if _is_allowed(before, name)}


def _with_names(base: dict[str, Any]) -> dict[str, Any]:
    rules = [
        {**rule, "names": rule.get("names") or [rule["name"]]} for rule in base.get("syscalls", ())
    ]
    return {**base, "syscalls": rules}


def _is_allowed(program: bytes, name: str) -> bool:
    number = pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, name)
    return bool(verdict(program, arch=NATIVE, nr=number) == pyseccomp.ALLOW)


def _audit(architecture: int) -> int:
    """x32 calls come as those of x86_64, with a bit in their numbers."""
    return int(NATIVE if architecture == pyseccomp.Arch.X32 else architecture)


@pytest.fixture(scope="module")
def program() -> bytes:
    return build(changed(DEFAULT))


def native(program: bytes, name: str, *args: int) -> int:
    number = pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, name)
    return verdict(program, arch=NATIVE, nr=number, args=args)


@pytest.mark.parametrize("name", TRAPPED)
def test_socket_calls_are_trapped(program: bytes, name: str) -> None:
    assert native(program, name, 3, BIT_32, 2**64 - 1) == pyseccomp.NOTIFY


@pytest.mark.skipif(NATIVE != pyseccomp.Arch.X86_64, reason="socketcall is of i386")
@pytest.mark.parametrize("which", SOCKETCALLS)
def test_socketcalls_of_i386_are_trapped(program: bytes, which: int) -> None:
    number = CALL_NUMBERS[I386]["socketcall"]
    said = verdict(program, arch=pyseccomp.Arch.X86, nr=number, args=(which, 0x1000))
    assert said == pyseccomp.NOTIFY


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("high", [0, BIT_32, 1 << 63])
def test_no_trapped_option_gets_by_with_bits_that_the_kernel_does_not_read(
    program: bytes, name: str, high: int
) -> None:
    for level, option in OPTIONS[name]:
        assert native(program, name, 3, level | high, option | high) == pyseccomp.NOTIFY


def test_everyday_options_are_not_trapped(program: bytes) -> None:
    """TCP_NODELAY, TCP_CORK, TCP_QUICKACK, SO_KEEPALIVE, SO_RCVTIMEO, IPV6_V6ONLY, and at levels
    of their own the numbers of options that are trapped.
    """
    for level, option in ((6, 1), (6, 3), (6, 12), (1, 9), (1, 20), (41, 26), (6, 47), (263, 1)):
        assert native(program, "setsockopt", 3, level, option) == pyseccomp.ALLOW
    assert native(program, "getsockopt", 3, 1, 4) == pyseccomp.ALLOW


@pytest.mark.parametrize(("name", "index"), TRAPPED_WITH_FASTOPEN.items())
def test_sends_are_trapped_only_with_fastopen(program: bytes, name: str, index: int) -> None:
    quiet, loud = [0, 0, 0, 0], [0, 0, 0, 0]
    quiet[index], loud[index] = 0x4000 | BIT_32, MSG_FASTOPEN | BIT_32
    assert native(program, name, *quiet) == pyseccomp.ALLOW
    assert native(program, name, *loud) == pyseccomp.NOTIFY


def test_what_slim_does_not_know_is_kept() -> None:
    after = changed(DEFAULT, '{"namespace": "shop"}')
    assert after["archMap"] == DEFAULT["archMap"]
    assert after["syscalls"][0]["comment"] == "kept"
    assert (after["listenerPath"], after["listenerMetadata"]) == (SOCKET, '{"namespace": "shop"}')
    assert "listenerMetadata" not in changed(DEFAULT)


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b"", "no seccomp profile"),
        (b"[]", "no seccomp profile"),
        (b"{}", "no seccomp profile"),
        (b'{"defaultAction": 1}', "no seccomp profile"),
        (b'{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [1]}', "no seccomp profile"),
        (b"[" * 100_000, "no seccomp profile"),
        (b"\xff", "no seccomp profile"),
        (b" " * (5 << 20), "larger than"),
    ],
)
def test_what_is_no_profile_is_refused(raw: bytes, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        add_slim(raw, SOCKET)


def test_a_profile_of_another_agent_is_refused() -> None:
    base = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["mount"], "action": "SCMP_ACT_NOTIFY"}],
    }
    with pytest.raises(ConfigError, match="traps mount already"):
        changed(base)
    with pytest.raises(ConfigError, match="already"):
        changed(changed(DEFAULT))


def test_conditions_that_cannot_be_joined_are_refused() -> None:
    rule = {
        "names": ["sendto"],
        "action": "SCMP_ACT_ALLOW",
        "args": [{"index": 3, "value": 0, "op": "SCMP_CMP_EQ"}],
    }
    with pytest.raises(ConfigError, match="allows sendto for some arguments only"):
        changed({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [rule]})


def test_conditions_on_calls_that_are_trapped_anyway_are_kept() -> None:
    condition = [{"index": 0, "value": 3, "op": "SCMP_CMP_EQ"}]
    rule = {"names": ["connect", "read"], "action": "SCMP_ACT_ALLOW", "args": condition}
    after = changed({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [rule]})
    assert [(each["names"], each["action"], each.get("args")) for each in after["syscalls"]] == [
        (["read"], "SCMP_ACT_ALLOW", condition),
        (["connect"], "SCMP_ACT_NOTIFY", condition),
        ([*REFUSED], "SCMP_ACT_ERRNO", None),
    ]
