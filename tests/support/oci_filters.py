"""The filter that a runtime makes of a profile: libseccomp, fed as runc and crun feed it."""

from __future__ import annotations

import os
from collections import Counter
from typing import Any

import pyseccomp

OPERATIONS = {
    "SCMP_CMP_NE": pyseccomp.NE,
    "SCMP_CMP_LT": pyseccomp.LT,
    "SCMP_CMP_EQ": pyseccomp.EQ,
    "SCMP_CMP_GT": pyseccomp.GT,
    "SCMP_CMP_MASKED_EQ": pyseccomp.MASKED_EQ,
}
ARCHITECTURES = {"x86_64": (pyseccomp.Arch.X86, pyseccomp.Arch.X32)}
"""What the engines add to the native one by archMap."""


def build(profile: dict[str, Any], capabilities: frozenset[str] = frozenset()) -> bytes:
    """An array of struct sock_filter; `includes` and `excludes` are resolved as engines do."""
    program = pyseccomp.SyscallFilter(
        _action(profile["defaultAction"], profile.get("defaultErrnoRet"))
    )
    for architecture in ARCHITECTURES.get(os.uname().machine, ()):
        program.add_arch(architecture)
    for rule in profile["syscalls"]:
        if _applies(rule, capabilities):
            _add(program, rule)
    with open(os.memfd_create("profile"), "w+b") as memory:
        program.export_bpf(memory)
        memory.seek(0)
        return memory.read()


def _applies(rule: dict[str, Any], capabilities: frozenset[str]) -> bool:
    includes, excludes = rule.get("includes") or {}, rule.get("excludes") or {}
    if not capabilities.issuperset(includes.get("caps") or ()):
        return False
    if "arches" in includes and "amd64" not in includes["arches"]:
        return False
    return not capabilities.intersection(excludes.get("caps") or ())


def _add(program: Any, rule: dict[str, Any]) -> None:
    arguments = [
        pyseccomp.Arg(
            each["index"],
            OPERATIONS[each["op"]],
            each["value"],
            *([each["valueTwo"]] if each["op"] == "SCMP_CMP_MASKED_EQ" else []),
        )
        for each in rule.get("args") or ()
    ]
    indices = Counter(each["index"] for each in rule.get("args") or ())
    # Conditions on one argument are alternatives (libcontainer's matchCall).
    together = (
        [[each] for each in arguments] if max(indices.values(), default=0) > 1 else [arguments]
    )
    for name in rule["names"]:
        if pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, name) == -1:
            continue
        for conditions in together:
            action = _action(rule["action"], rule.get("errnoRet"))
            if action != program._defaction:
                program.add_rule(action, name, *conditions)


def _action(name: str, errno: int | None) -> int:
    if name == "SCMP_ACT_ERRNO":
        return int(pyseccomp.ERRNO(1 if errno is None else errno))
    found = {"SCMP_ACT_ALLOW": pyseccomp.ALLOW, "SCMP_ACT_NOTIFY": pyseccomp.NOTIFY}[name]
    return int(found)
