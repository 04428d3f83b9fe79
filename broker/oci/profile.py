"""An OCI seccomp profile with Slim's calls changed to NOTIFY: the input's rules, nothing loosened.

    allowed by the profile, trapped by Slim      -> SCMP_ACT_NOTIFY, under the same conditions
    trapped for some arguments only              -> split by argument; the rest stays allowed
    socketcall, of 32-bit programs               -> NOTIFY: its arguments are in memory
    io_uring                                     -> ENOSYS, whatever the profile says
    everything else                              -> as it was

Where libseccomp finds two rules of different actions for one call it is not defined which one
holds, so the rules that a call is split into exclude each other in all 64 bits of an argument.
The format is that of the runtimes' own default profiles (Docker's and Podman's, with archMap,
includes and excludes), of which the runtime specification's linux.seccomp is a part.
"""

from __future__ import annotations

import errno
from typing import Any, TypeAlias

import msgspec

from slim.broker.errors import ConfigError
from slim.broker.kernel.pacing import LIMIT_OPTIONS
from slim.broker.kernel.trapped_calls import (
    MSG_FASTOPEN,
    REFUSED,
    TRAPPED,
    TRAPPED_OPTIONS,
    TRAPPED_READS,
    TRAPPED_WITH_FASTOPEN,
)

MAX_BYTES = 4 << 20
NOTIFY = "SCMP_ACT_NOTIFY"
ALLOW = "SCMP_ACT_ALLOW"
ERRNO = "SCMP_ACT_ERRNO"
ALWAYS_TRAPPED = (*TRAPPED, "socketcall")
SET_OPTIONS = TRAPPED_OPTIONS + LIMIT_OPTIONS
"""A profile is for containers that are limited, too."""
_LEVEL_ARGUMENT, _OPTION_ARGUMENT = 1, 2
"""Of setsockopt and getsockopt."""
_LEVEL_BITS, _OPTION_BITS = 9, 7
"""Wider than any that Linux has: SOL_SMC is 286, TCP_RTO_MIN_US 45 (linux/socket.h)."""
_ALL_BITS = (1 << 64) - 1

Rule: TypeAlias = dict[str, Any]
"""An entry of `syscalls`."""
Argument: TypeAlias = dict[str, int | str]
"""An entry of a rule's `args`."""


class _Checked(msgspec.Struct, frozen=True):
    """What is relied on in a rule; other keys are kept as they are."""

    action: str
    names: list[str] = []
    name: str = ""
    args: list[Any] | None = None


class _Profile(msgspec.Struct, frozen=True, rename="camel"):
    """What is relied on in a profile."""

    default_action: str
    syscalls: list[_Checked] | None = None


def add_slim(raw: bytes, listener_path: str, metadata: str = "") -> bytes:
    """The profile as JSON, with Slim's calls trapped; ConfigError when that cannot be done."""
    if len(raw) > MAX_BYTES:
        raise ConfigError(f"the seccomp profile is larger than {MAX_BYTES} bytes")
    try:
        checked = msgspec.json.decode(raw, type=_Profile)
        profile: dict[str, Any] = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(
            f"that is no seccomp profile: {error}",
            hint="give the JSON file that the runtime uses, such as podman's "
            "/usr/share/containers/seccomp.json",
        ) from None
    rules: list[Rule] = profile.get("syscalls") or []
    for rule, facts in zip(rules, checked.syscalls or (), strict=True):
        if facts.action == NOTIFY:
            raise ConfigError(
                f"the seccomp profile traps {', '.join(_names(rule)) or 'calls'} already",
                hint="the kernel allows one seccomp agent per container: give a profile without",
            )
    result = [new for rule in rules for new in _change(rule)]
    if checked.default_action == ALLOW:
        named = {name for rule in rules for name in _names(rule)}
        unnamed = [name for name in _slim_names() if name not in named]
        result += _change({"names": unnamed, "action": ALLOW})
    result.append({"names": [*REFUSED], "action": ERRNO, "errnoRet": errno.ENOSYS})
    profile["syscalls"] = result
    profile["listenerPath"] = listener_path
    if metadata:
        profile["listenerMetadata"] = metadata
    return msgspec.json.format(msgspec.json.encode(profile), indent=2) + b"\n"


def _slim_names() -> list[str]:
    return [*ALWAYS_TRAPPED, *TRAPPED_WITH_FASTOPEN, "setsockopt", "getsockopt"]


def _names(rule: Rule) -> list[str]:
    """Docker's oldest profiles have one `name` to a rule."""
    return [*(rule.get("names") or ()), *filter(None, [rule.get("name")])]


def _change(rule: Rule) -> list[Rule]:
    """What becomes of one rule of the profile."""
    names = [name for name in _names(rule) if name not in REFUSED]
    if rule["action"] != ALLOW:
        return [_with(rule, names)] if names else []
    untouched = [name for name in names if name not in _slim_names()]
    trapped = [name for name in names if name in ALWAYS_TRAPPED]
    split = [name for name in names if name in _slim_names() and name not in ALWAYS_TRAPPED]
    changed = [_with(rule, untouched)] if untouched else []
    if trapped:
        changed.append(_with(rule, trapped) | {"action": NOTIFY})
    for name in split:
        if rule.get("args"):
            raise ConfigError(
                f"the seccomp profile allows {name} for some arguments only, and so does Slim",
                hint="two such conditions on one call cannot be joined: allow it without, or not",
            )
        changed += [
            _with(rule, [name]) | {"action": action, "args": arguments}
            for action, arguments in _cases(name)
        ]
    return changed


def _with(rule: Rule, names: list[str]) -> Rule:
    return {**{key: value for key, value in rule.items() if key != "name"}, "names": names}


def _cases(name: str) -> list[tuple[str, list[Argument]]]:
    """Conditions that cover all arguments and exclude each other."""
    index = TRAPPED_WITH_FASTOPEN.get(name)
    if index is not None:
        return [
            (ALLOW, [_masked(index, MSG_FASTOPEN, 0)]),
            (NOTIFY, [_masked(index, MSG_FASTOPEN, MSG_FASTOPEN)]),
        ]
    options = SET_OPTIONS if name == "setsockopt" else TRAPPED_READS
    levels = {level for level, _ in options}
    cases = [
        (action, [argument])
        for action, argument in _split(_LEVEL_ARGUMENT, _LEVEL_BITS, levels)
        if not (action == NOTIFY and argument.get("valueTwo") in levels)
    ]
    for level in sorted(levels):
        numbers = {option for own, option in options if own == level}
        cases += [
            (action, [_masked(_LEVEL_ARGUMENT, _ALL_BITS, level), argument])
            for action, argument in _split(_OPTION_ARGUMENT, _OPTION_BITS, numbers)
        ]
    return cases


def _split(index: int, bits: int, numbers: set[int]) -> list[tuple[str, Argument]]:
    """An argument into these numbers and the others.

    Numbers that nothing has, and any with a bit beyond the 32 that the kernel reads, are trapped
    too, and looked at then.
    """
    beyond: Argument = {"index": index, "value": (1 << bits) - 1, "op": "SCMP_CMP_GT"}
    cases = [(NOTIFY, beyond)]
    cases += [(NOTIFY, _masked(index, _ALL_BITS, number)) for number in sorted(numbers)]
    cases += [
        (ALLOW, _masked(index, _ALL_BITS & ~((1 << width) - 1), first))
        for first, width in _aligned_gaps(numbers, 0, bits)
    ]
    return cases


def _aligned_gaps(taken: set[int], first: int, bits: int) -> list[tuple[int, int]]:
    """Blocks (first number, bits left open) of [first, first + 2**bits) that hold none of these."""
    if not any(first <= number < first + (1 << bits) for number in taken):
        return [(first, bits)]
    if bits == 0:
        return []
    half = bits - 1
    return _aligned_gaps(taken, first, half) + _aligned_gaps(taken, first + (1 << half), half)


def _masked(index: int, mask: int, value: int) -> Argument:
    """The runtimes call the mask `value` and what is compared `valueTwo`."""
    return {"index": index, "value": mask, "valueTwo": value, "op": "SCMP_CMP_MASKED_EQ"}
