"""What the kernel guard needs, found out without loading anything: for doctor and slimd."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from slim.broker.errors import KernelFeatureMissing
from slim.broker.kernel import bpf, features

OBJECT = Path(__file__).with_name("guard.bpf.o")
"""Compiled by the build hook from kmod/guard.bpf.c."""

FLOORS = {
    "slim_connect4": (4, 17),
    "slim_connect6": (4, 17),
    "slim_bind4": (4, 17),
    "slim_bind6": (4, 17),
    "slim_setsockopt": (5, 3),
    "slim_getsockopt": (5, 3),
    "slim_getpeername4": (5, 8),
    "slim_getpeername6": (5, 8),
    "slim_getsockname4": (5, 8),
    "slim_getsockname6": (5, 8),
    "slim_sockops": (5, 10),
    "slim_ingress": (5, 8),
}
"""Program -> the first kernel that has all it uses (attach type, helpers, link, sk_storage)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Requirement:
    name: str
    there: bool
    found: str
    remedy: str = ""


def probe() -> tuple[Requirement, ...]:
    """Every requirement, met or not."""
    return (
        _object(),
        _libbpf(),
        _capabilities(),
        _cgroup(),
        _kernel(),
        _bpffs(),
    )


def why_unavailable() -> str:
    """An empty string, or what is missing for the kernel guard."""
    return "; ".join(f"{lack.name}: {lack.found}" for lack in probe() if not lack.there)


def require() -> None:
    """KernelFeatureMissing that names everything that is missing, and the remedies."""
    lacks = [requirement for requirement in probe() if not requirement.there]
    if lacks:
        raise KernelFeatureMissing(
            "the kernel guard is unavailable: "
            + "; ".join(f"{lack.name}: {lack.found}" for lack in lacks),
            hint="; ".join(lack.remedy for lack in lacks),
        )


def _object() -> Requirement:
    there = OBJECT.is_file()
    return Requirement(
        name="programs",
        there=there,
        found=str(OBJECT) if there else "Slim was installed without the compiled guard",
        remedy="install clang, llvm and libbpf-dev, then install Slim again",
    )


def _libbpf() -> Requirement:
    problem = bpf.why_no_libbpf()
    return Requirement(
        name="libbpf",
        there=not problem,
        found=problem or bpf.SONAME,
        remedy="install libbpf 1.x (Debian: libbpf1)",
    )


def _capabilities() -> Requirement:
    has = features.effective_capabilities()
    # CAP_SYS_ADMIN stands for CAP_BPF where that is older (capabilities(7)).
    missing = {"CAP_NET_ADMIN"} - has
    if not has & {"CAP_BPF", "CAP_SYS_ADMIN"}:
        missing.add("CAP_BPF")
    return Requirement(
        name="capabilities",
        there=not missing,
        found=f"missing: {', '.join(sorted(missing))}" if missing else "CAP_BPF, CAP_NET_ADMIN",
        remedy="run slimd with CAP_BPF and CAP_NET_ADMIN in the initial user namespace",
    )


def _cgroup() -> Requirement:
    mount = features.cgroup2_mount()
    return Requirement(
        name="cgroup v2",
        there=mount is not None,
        found=mount or "not mounted",
        remedy="mount -t cgroup2 none /sys/fs/cgroup/unified (beside cgroup v1 does as well)",
    )


def _kernel() -> Requirement:
    release = features.kernel_release()
    late = sorted(name for name, floor in FLOORS.items() if release < floor)
    version = f"Linux {release[0]}.{release[1]}"
    return Requirement(
        name="kernel",
        there=not late,
        found=f"{version} is too old for {', '.join(late)}" if late else version,
        remedy=f"Linux {'.'.join(map(str, max(FLOORS.values())))} or newer",
    )


def _bpffs() -> Requirement:
    known = "/proc/filesystems"
    there = "\tbpf\n" in Path(known).read_text()
    return Requirement(
        name="bpffs",
        there=there,
        found="known to the kernel" if there else f"not in {known}",
        remedy="a kernel with CONFIG_BPF_SYSCALL",
    )
