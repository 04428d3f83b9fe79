"""The probes, on this kernel: what they say, and that they leave nothing behind."""

from __future__ import annotations

import contextlib
import os
import platform
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from slim.broker.errors import KernelFeatureMissing
from slim.broker.kernel import features
from slim.broker.kernel.features import Clock, ListenerFeatures
from support.polling import eventually

# What a process asks of its own listener when it has one already.
UNDER_A_LISTENER = """
import struct
from slim.broker.kernel import features
from slim.broker.kernel.seccomp_install import install_filter, set_no_new_privs
set_no_new_privs()
listener = install_filter(struct.pack("=HBBI", 6, 0, 0, features.SECCOMP_RET_ALLOW))
print(features.probe_listener().error)
"""


def own_state() -> tuple[list[str], list[str]]:
    """What a probe could have changed: seccomp and no_new_privs of this process, and its fds."""
    lines = Path("/proc/self/status").read_text().splitlines()
    named = ("Seccomp", "NoNewPrivs", "Threads")
    return [line for line in lines if line.startswith(named)], sorted(os.listdir("/proc/self/fd"))


def needs_linux(major: int, minor: int) -> None:
    if features.kernel_release() < (major, minor):
        pytest.skip(f"Linux {major}.{minor} is needed, this is {platform.release()}")


def test_the_release_is_that_of_uname() -> None:
    major, minor = features.kernel_release()
    assert platform.release().startswith(f"{major}.{minor}")


@pytest.mark.parametrize(
    ("release", "expected"),
    [
        ("6.1.0-18-amd64", (6, 1)),
        ("5.15.90.1-microsoft", (5, 15)),
        ("6.9-rc3", (6, 9)),
        ("7", (7, 0)),
    ],
)
def test_releases_of_distributions_are_read(
    monkeypatch: pytest.MonkeyPatch, release: str, expected: tuple[int, int]
) -> None:
    monkeypatch.setattr(platform, "release", lambda: release)
    assert features.kernel_release() == expected


def test_notifications_are_there_and_their_structures_are_ours() -> None:
    assert features.has_user_notification()
    assert features.read_notif_sizes() == features.NOTIF_SIZES


def test_a_listener_can_do_what_this_kernel_has() -> None:
    found = features.probe_listener()
    release = features.kernel_release()
    assert found == ListenerFeatures(
        adds_fds=release >= (5, 9),
        wakes_in_sync=release >= (6, 6),
    )


def test_a_probe_leaves_this_process_as_it_was() -> None:
    before = own_state()
    features.require()
    features.probe_listener()
    features.read_clock()
    # Python's join returns a moment before the kernel's thread is gone.
    eventually(lambda: own_state() == before, "the probe's thread, filter and fds are gone")


def test_one_listener_excludes_another_and_the_probe_says_so() -> None:
    done = subprocess.run(
        [sys.executable, "-c", UNDER_A_LISTENER], capture_output=True, text=True, timeout=20
    )
    assert "EBUSY" in done.stdout, done.stderr


def test_what_linux_5_14_has_is_found() -> None:
    needs_linux(5, 14)
    assert features.has_pidfd_getfd()
    assert features.has_netns_cookie()
    assert features.can_read_memory()


def test_pidfds_of_threads_come_with_linux_6_9() -> None:
    assert features.has_pidfd_thread() == (features.kernel_release() >= (6, 9))


def test_this_kernel_has_all_that_is_required() -> None:
    needs_linux(5, 14)
    features.require()


@pytest.mark.parametrize(
    ("probe", "value", "words"),
    [
        ("has_pidfd_getfd", False, "pidfd_getfd"),
        ("has_netns_cookie", False, "SO_NETNS_COOKIE"),
        ("can_read_memory", False, "process_vm_readv"),
        ("read_notif_sizes", (96, 24, 64), "notifications"),
        ("probe_listener", ListenerFeatures(adds_fds=False), "NOTIF_ADDFD"),
        ("probe_listener", ListenerFeatures(error="seccomp: EPERM"), "seccomp: EPERM"),
    ],
)
def test_what_is_missing_is_named(
    monkeypatch: pytest.MonkeyPatch, probe: str, value: object, words: str
) -> None:
    monkeypatch.setattr(features, probe, lambda: value)
    with pytest.raises(KernelFeatureMissing, match=words) as caught:
        features.require()
    assert "slimctl doctor" in caught.value.hint


def test_a_sysctl_that_this_kernel_has_not_is_none() -> None:
    assert features.read_sysctl("kernel.ostype") == "Linux"
    assert features.read_sysctl("kernel.slim.nonsense") is None


def test_capabilities_are_those_of_proc() -> None:
    has = features.effective_capabilities()
    assert has <= features.CAPABILITIES.keys()
    if os.geteuid() != 0:
        return
    # Making a raw socket is what CAP_NET_RAW is for.
    can = False
    with contextlib.suppress(PermissionError):
        socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP).close()
        can = True
    assert ("CAP_NET_RAW" in has) == can


def test_a_mount_of_cgroup_v2_is_one() -> None:
    mount = features.cgroup2_mount()
    if mount is None:
        pytest.skip("cgroup v2 is not mounted here")
    assert Path(mount, "cgroup.procs").exists()


def test_the_clocks_state_is_one_of_adjtimex() -> None:
    clock = features.read_clock()
    assert 0 <= clock.state <= features.TIME_ERROR
    # The kernel says TIME_ERROR because of STA_UNSYNC, or else of a bit of a broken clock or PPS.
    if clock.status & features.STA_UNSYNC:
        assert clock.state == features.TIME_ERROR
    if clock.state == features.TIME_ERROR:
        assert clock.status & 0xFFFF
    assert clock.is_synchronised == (clock.state != features.TIME_ERROR)


def test_a_clock_is_synchronised_only_without_error() -> None:
    assert Clock(0, 0).is_synchronised
    assert not Clock(features.TIME_ERROR, 0).is_synchronised
    assert not Clock(0, features.STA_UNSYNC | 1).is_synchronised


def test_only_a_listening_socket_is_a_listener(tmp_path: Path) -> None:
    path = tmp_path / "with blank.sock"
    assert not features.is_unix_listener(path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.bind(str(path))
        assert not features.is_unix_listener(path)
        sock.listen(1)
        assert features.is_unix_listener(path)
    assert path.exists()
    assert not features.is_unix_listener(path)
