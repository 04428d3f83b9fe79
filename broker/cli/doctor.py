"""`slimctl doctor`: what this host offers Slim, what is missing, and what to do about it.

Runs without slimd. Each check is a function that gives one Check, and changes nothing.
"""

from __future__ import annotations

import resource
import time
from collections import Counter
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from slim.broker.admin import client, messages
from slim.broker.cli.checks import Check, make_check
from slim.broker.cli.tables import print_json, printable
from slim.broker.endpoints import PortRange
from slim.broker.errors import ControlError, SlimError
from slim.broker.guard import requirements
from slim.broker.kernel import features

if TYPE_CHECKING:
    from collections.abc import Callable

    from slim.broker.config import BrokerConfig, PeersConfig

MIN_KERNEL = (5, 14)
MIN_FILES = 8192
RENEW_WITHIN = timedelta(days=14)
DEFAULT_HOST_PORTS = PortRange(20000, 29999)
NEEDED_CAPABILITIES = frozenset({"CAP_SYS_ADMIN", "CAP_SYS_PTRACE", "CAP_NET_ADMIN", "CAP_CHOWN"})


def _there(there: bool) -> str:
    return "yes" if there else "no"


def check_kernel() -> Check:
    release = features.kernel_release()
    found = f"Linux {release[0]}.{release[1]}"
    return make_check("kernel", release >= MIN_KERNEL, found, "Slim needs Linux 5.14 or newer")


def check_seccomp() -> Check:
    actions = features.read_sysctl("kernel.seccomp.actions_avail") or "unknown"
    sizes = features.read_notif_sizes()
    good = features.has_user_notification() and sizes == features.NOTIF_SIZES
    return make_check(
        "seccomp notification",
        good,
        f"actions: {actions}; structures of {sizes[0]}, {sizes[1]}, {sizes[2]} bytes",
        "build the kernel with CONFIG_SECCOMP_FILTER; in a container, allow seccomp(2)",
    )


def check_listener() -> list[Check]:
    """One listener is made, and asked for everything that depends on one."""
    listener = features.probe_listener()
    if listener.error:
        remedy = "allow seccomp(2) with a new listener; EBUSY: run slimctl outside slim-run"
        return [Check("seccomp listener", "fail", listener.error, remedy)]
    newer = "Slim needs Linux 5.14 or newer"
    return [
        make_check("put fds in (ADDFD)", listener.adds_fds, _there(listener.adds_fds), newer),
        make_check(
            "sync wake-up",
            listener.wakes_in_sync,
            _there(listener.wakes_in_sync),
            "from Linux 6.6 on trapped calls are answered faster",
            "warn",
        ),
    ]


def check_memory() -> Check:
    there = features.can_read_memory()
    return make_check(
        "process_vm_readv", there, _there(there), "build the kernel with CONFIG_CROSS_MEMORY_ATTACH"
    )


def check_pidfd() -> Check:
    there = features.has_pidfd_getfd()
    return make_check(
        "pidfd_getfd",
        there,
        _there(there),
        "allow pidfd_getfd(2); it needs CAP_SYS_PTRACE",
    )


def check_pidfd_thread() -> Check:
    there = features.has_pidfd_thread()
    return make_check(
        "pidfd of threads",
        there,
        _there(there),
        "before Linux 6.9 threads with fd tables of their own run unaccelerated",
        "warn",
    )


def check_netns_cookie() -> Check:
    there = features.has_netns_cookie()
    return make_check("namespace cookies", there, _there(there), "Slim needs Linux 5.14 or newer")


def check_ptrace() -> Check:
    scope = features.read_sysctl("kernel.yama.ptrace_scope") or "no yama"
    good = scope in ("no yama", "0", "1", "2")
    return make_check(
        "ptrace scope", good, scope, "sysctl -w kernel.yama.ptrace_scope=2 (3 forbids it to all)"
    )


def check_io_uring() -> Check:
    value = features.read_sysctl("kernel.io_uring_disabled")
    found = "not known to this kernel" if value is None else value
    return Check("io_uring disabled", "ok", f"{found}; containers get ENOSYS whatever it is")


def check_cgroup() -> Check:
    mount = features.cgroup2_mount()
    if mount is None:
        return Check("cgroup v2", "ok", "not mounted; only the kernel guard needs it")
    return Check("cgroup v2", "ok", f"{mount} (hybrid)" if Path(mount).name == "unified" else mount)


def check_capabilities() -> Check:
    has = features.effective_capabilities()
    missing = NEEDED_CAPABILITIES - has
    found = f"missing: {', '.join(sorted(missing))}" if missing else "all that slimd needs"
    if "CAP_BPF" not in has:
        found += "; not CAP_BPF, which only the kernel guard uses"
    if "CAP_NET_RAW" in has:
        found += "; CAP_NET_RAW is not needed"
    return make_check("capabilities", not missing, found, "run slimd (and doctor) as root")


def check_guard() -> list[Check]:
    """The kernel guard's requirements; none is Slim's own, so a missing one only warns."""
    lacks = [requirement for requirement in requirements.probe() if not requirement.there]
    if not lacks:
        return [Check("kernel guard", "ok", 'can run here (guard = "kernel")')]
    return [
        Check("kernel guard", "warn", f"{lack.name}: {lack.found}", lack.remedy) for lack in lacks
    ]


def check_clock() -> Check:
    if time.gmtime().tm_year < 2024:
        return Check("clock", "fail", time.strftime("%F"), "set the clock: certificates have dates")
    good = features.read_clock().is_synchronised
    return make_check(
        "clock",
        good,
        "synchronised" if good else "not synchronised",
        "run an NTP client: certificates are refused when clocks differ by minutes",
        "warn",
    )


def check_fast_open() -> Check:
    value = features.read_sysctl("net.ipv4.tcp_fastopen") or "0"
    good = bool(int(value) & 1)
    return make_check(
        "TCP fast open",
        good,
        value,
        f"sysctl -w net.ipv4.tcp_fastopen={int(value) | 1}: without bit 1 connections "
        "stay on the overlay (tfo-off)",
        "warn",
    )


def check_files() -> Check:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    good = hard == resource.RLIM_INFINITY or hard >= MIN_FILES
    found = "unlimited" if hard == resource.RLIM_INFINITY else str(hard)
    return make_check("open files", good, found, f"ulimit -Hn {MIN_FILES} or more", "warn")


def check_local_ports() -> Check:
    """Against the host ports that a configuration without [host] ports has."""
    text = features.read_sysctl("net.ipv4.ip_local_port_range")
    if text is None:
        return Check("local ports", "warn", "unknown", "mount /proc")
    kernel = PortRange(*(int(word) for word in text.split()))
    return make_check(
        "local ports",
        not kernel.overlaps(DEFAULT_HOST_PORTS),
        f"{kernel}; host ports are {DEFAULT_HOST_PORTS} unless configured",
        'sysctl -w net.ipv4.ip_local_port_range="32768 60999", or other [host] ports',
        "warn",
    )


def check_pacing() -> Check:
    """What [shaping] has to enforce the rate of a connection."""
    there = features.can_pace()
    found = "SO_MAX_PACING_RATE; TCP paces by itself, without fq" if there else "no"
    return make_check("connection rates", there, found, "Slim needs Linux 5.14 or newer")


def check_queues() -> Check:
    """What [[shaping.container]] has, tried in a namespace of its own."""
    from slim.broker import queues

    missing = queues.probe()
    if missing is not None:
        return Check("workload rates", "warn", *missing)
    return Check("workload rates", "ok", "HTB classes, chosen by SO_MARK with cls_bpf")


CHECKS: tuple[Callable[[], Check], ...] = (
    check_memory,
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
    check_pacing,
    check_queues,
)


def check_config(config: BrokerConfig) -> list[Check]:
    """What of a configuration depends on this host."""
    # Here and below: the configuration's modules only where one is given.
    from slim.broker.config import check_host_addresses, check_host_ports

    found = []
    for name, check in (("host addresses", check_host_addresses), ("host ports", check_host_ports)):
        try:
            check(config)
        except SlimError as error:
            found.append(Check(name, "fail", error.message, error.hint))
    if config.shaping.containers:
        from slim.broker import queues

        try:
            queues.check(config.host.addresses)
        except SlimError as error:
            found.append(Check("[[shaping.container]]", "fail", error.message, error.hint))
    from slim.broker.cli.overlay_checks import check_overlay

    found += [check_overlay(overlay) for overlay in config.overlays]
    if config.peers is not None:
        found.append(check_certificate(config.host.name, config.peers))
    if not any(check.outcome == "fail" for check in found):
        found += [Check("config", "ok", str(config.path)), check_firewall(config)]
    return found


def check_certificate(host: str, peers: PeersConfig) -> Check:
    """Whether other hosts will believe this one, today and in a while."""
    from slim.broker.peers import pki

    try:
        identity = pki.load_host_credentials(peers.certificate, peers.key, peers.authority).identity
    except SlimError as error:
        return Check("certificate", "fail", error.message, error.hint)
    left = identity.not_after - datetime.now(UTC)
    found = f"of {identity.host}, until {identity.not_after:%Y-%m-%d}"
    remedy = f"slimctl pki issue DIR {host} --network CIDR --force, then slimctl reload"
    if identity.host != host:
        return Check("certificate", "fail", f"{found}; [host] name is {host}", remedy)
    return make_check("certificate", left >= RENEW_WITHIN, found, remedy, "warn")


def check_firewall(config: BrokerConfig) -> Check:
    """What must be let in cannot be tested from here; the line to do it can be given."""
    peers = f", {config.peers.listen.port}" if config.peers else ""
    return Check(
        "firewall",
        "ok",
        f"peers must reach tcp {config.host.ports}{peers}; with nftables:",
        f"nft add rule inet filter input tcp dport {{ {config.host.ports}{peers} }} accept",
    )


def check_slimd(run_dir: Path) -> list[Check]:
    try:
        answer = client.ask(run_dir, messages.GetStatus(), messages.Status)
    except ControlError as error:
        return [Check("slimd", "warn", error.message, error.hint), check_keeper(run_dir)]
    found = ", ".join(f"{process.role} {process.pid or 'down'}" for process in answer.processes)
    good = all(process.pid for process in answer.processes)
    return [make_check("slimd", good, found, "see slimd's log: a process is not running", "warn")]


def check_keeper(run_dir: Path) -> Check:
    """Whether somebody listens at the keeper's socket, which is not disturbed by being asked."""
    path = run_dir / "keeper.sock"
    there = features.is_unix_listener(path)
    return make_check(
        "keeper",
        there,
        f"listens at {path}" if there else f"nobody listens at {path} in this network namespace",
        "slimd starts it; without a keeper trapped calls of containers fail with ENOSYS",
        "warn",
    )


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON (docs/slimctl.md).")
@click.option("--config", type=click.Path(path_type=Path, dir_okay=False), help="Check it too.")
@click.pass_context
def doctor(context: click.Context, as_json: bool, config: Path | None) -> None:
    """Check this host; exit status 1 when something that Slim needs is missing.

    Without --run-dir, slimd is looked for in the run_dir of --config.
    """
    checks = [check_kernel(), check_seccomp(), *check_listener()]
    checks += [check() for check in CHECKS]
    checks += check_guard()
    run_dir: Path = context.obj
    if config is None:
        checks.append(check_local_ports())
    else:
        from slim.broker.config import load_config

        try:
            loaded = load_config(config)
        except SlimError as error:
            checks.append(Check("config", "fail", error.message, error.hint))
        else:
            checks += check_config(loaded)
            source = context.find_root().get_parameter_source("run_dir")
            if source in (None, ParameterSource.DEFAULT):
                run_dir = loaded.run_dir
    checks += check_slimd(run_dir)
    if as_json:
        print_json("checks", [asdict(check) for check in checks])
    else:
        _print(checks)
    if any(check.outcome == "fail" for check in checks):
        raise SystemExit(1)


def _print(checks: list[Check]) -> None:
    for check in checks:
        click.echo(f"{check.outcome:<5}{check.name:<22}{printable(check.found)}")
        if check.remedy:
            click.echo(f"{'':<5}{'':<22}-> {printable(check.remedy)}")
    count = Counter(check.outcome for check in checks)
    click.echo(f"\n{count['ok']} ok, {count['warn']} warn, {count['fail']} fail")
