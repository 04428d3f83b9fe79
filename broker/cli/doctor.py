"""`slimctl doctor`: what this host offers Slim, what is missing, and what to do about it.

Runs without slimd. Each check is a function that gives one Check.
"""

from __future__ import annotations

import resource
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from slim.broker.admin import client, messages
from slim.broker.cli.tables import print_json
from slim.broker.config import BrokerConfig, check_host_addresses, check_host_ports, load_config
from slim.broker.errors import ControlError, SlimError
from slim.broker.kernel import features

if TYPE_CHECKING:
    from collections.abc import Callable

MIN_KERNEL = (5, 14)
MIN_FILES = 8192
Outcome = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Check:
    name: str
    outcome: Outcome
    found: str
    remedy: str = ""


def _check(name: str, good: bool, found: str, remedy: str, bad: Outcome = "fail") -> Check:
    return Check(name, "ok", found) if good else Check(name, bad, found, remedy)


def check_kernel() -> Check:
    release = features.kernel_release()
    found = f"Linux {release[0]}.{release[1]}"
    return _check("kernel", release >= MIN_KERNEL, found, "Slim needs Linux 5.14 or newer")


def check_seccomp() -> Check:
    there = features.has_user_notification()
    actions = features.read_sysctl("kernel.seccomp.actions_avail") or "unknown"
    return _check(
        "seccomp notification",
        there,
        f"actions: {actions}",
        "build the kernel with CONFIG_SECCOMP_FILTER; in a container, allow seccomp(2)",
    )


def check_wake_up() -> Check:
    there = features.kernel_release() >= (6, 6)
    return _check(
        "sync wake-up", there, "Linux 6.6" if there else "no", "newer kernels trap faster", "warn"
    )


def check_pidfd() -> Check:
    there = features.has_pidfd_getfd()
    return _check(
        "pidfd_getfd",
        there,
        "yes" if there else "no",
        "allow pidfd_getfd(2); it needs CAP_SYS_PTRACE",
    )


def check_pidfd_thread() -> Check:
    there = features.has_pidfd_thread()
    return _check(
        "pidfd of threads",
        there,
        "yes" if there else "no",
        "before Linux 6.9 threads with fd tables of their own run unaccelerated",
        "warn",
    )


def check_netns_cookie() -> Check:
    there = features.has_netns_cookie()
    return _check(
        "namespace cookies", there, "yes" if there else "no", "Slim needs Linux 5.14 or newer"
    )


def check_ptrace() -> Check:
    scope = features.read_sysctl("kernel.yama.ptrace_scope") or "no yama"
    good = scope in ("no yama", "0", "1", "2")
    return _check(
        "ptrace scope", good, scope, "sysctl -w kernel.yama.ptrace_scope=2 (3 forbids it to all)"
    )


def check_io_uring() -> Check:
    value = features.read_sysctl("kernel.io_uring_disabled")
    return Check("io_uring", "ok", f"disabled={value or '?'}; refused inside containers anyway")


def check_cgroup() -> Check:
    mount = features.cgroup2_mount()
    return _check(
        "cgroup v2",
        mount is not None,
        mount or "not mounted",
        "mount -t cgroup2 none /sys/fs/cgroup",
        "warn",
    )


def check_capabilities() -> Check:
    needed = {"CAP_SYS_ADMIN", "CAP_SYS_PTRACE", "CAP_NET_ADMIN", "CAP_CHOWN"}
    missing = needed - features.effective_capabilities()
    found = f"missing: {', '.join(sorted(missing))}" if missing else "all that slimd needs"
    return _check("capabilities", not missing, found, "run slimd (and doctor) as root")


def check_clock() -> Check:
    if time.gmtime().tm_year < 2024:
        return Check("clock", "fail", time.strftime("%F"), "set the clock: certificates have dates")
    good = features.read_clock().is_synchronised
    return _check(
        "clock",
        good,
        "synchronised" if good else "not synchronised",
        "run an NTP client: certificates are refused when clocks differ by minutes",
        "warn",
    )


def check_fast_open() -> Check:
    value = features.read_sysctl("net.ipv4.tcp_fastopen") or "0"
    good = bool(int(value) & 1)
    return _check(
        "TCP fast open",
        good,
        value,
        f"sysctl -w net.ipv4.tcp_fastopen={int(value) | 1}: without bit 1 connections "
        "stay on the overlay (tfo-off)",
        "warn",
    )


def check_files() -> Check:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _check(
        "open files", hard >= MIN_FILES, str(hard), f"ulimit -Hn {MIN_FILES} or more", "warn"
    )


CHECKS: tuple[Callable[[], Check], ...] = (
    check_kernel,
    check_seccomp,
    check_wake_up,
    check_pidfd,
    check_pidfd_thread,
    check_netns_cookie,
    check_ptrace,
    check_io_uring,
    check_cgroup,
    check_capabilities,
    check_clock,
    check_fast_open,
    check_files,
)


def check_config(path: Path) -> list[Check]:
    """The checks that need a configuration."""
    try:
        config = load_config(path)
        check_host_addresses(config)
        check_host_ports(config)
    except SlimError as error:
        return [Check("config", "fail", error.message, error.hint)]
    return [Check("config", "ok", str(path)), check_firewall(config)]


def check_firewall(config: BrokerConfig) -> Check:
    """What must be let in cannot be tested from here; the line to do it can be given."""
    peers = f", {config.peers.listen.port}" if config.peers else ""
    return Check(
        "firewall",
        "ok",
        f"peers must reach tcp {config.host.ports}{peers}",
        f"nft add rule inet filter input tcp dport {{ {config.host.ports}{peers} }} accept",
    )


def check_slimd(run_dir: Path) -> Check:
    try:
        answer = client.ask(run_dir, messages.GetStatus(), messages.Status)
    except ControlError as error:
        return Check("slimd", "warn", error.message, error.hint)
    found = ", ".join(f"{process.role} {process.pid}" for process in answer.processes)
    good = all(process.pid for process in answer.processes)
    return _check("slimd", good, found, "see slimd's log: a process is not running", "warn")


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON (docs/slimctl.md).")
@click.option("--config", type=click.Path(path_type=Path, dir_okay=False), help="Check it too.")
@click.pass_obj
def doctor(run_dir: Path, as_json: bool, config: Path | None) -> None:
    """Check this host; exit status 1 when something that Slim needs is missing."""
    checks = [check() for check in CHECKS]
    if config is not None:
        checks += check_config(config)
    checks.append(check_slimd(run_dir))
    if as_json:
        print_json(
            "checks",
            [
                {"name": c.name, "outcome": c.outcome, "found": c.found, "remedy": c.remedy}
                for c in checks
            ],
        )
    else:
        for check in checks:
            click.echo(f"{check.outcome:<5}{check.name:<22}{check.found}")
            if check.remedy:
                click.echo(f"{'':<5}{'':<22}-> {check.remedy}")
    if any(check.outcome == "fail" for check in checks):
        raise SystemExit(1)
