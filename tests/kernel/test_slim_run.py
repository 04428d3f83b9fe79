"""slim-run with a real kernel and a slimd that only lets calls go on (support.fake_slimd)."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from slim.broker.kernel.call_numbers import CALL_NUMBERS, architectures
from support.fake_slimd import FakeSlimd
from support.launching import Launcher

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.needs_root

NUMBERS = CALL_NUMBERS[architectures()[0]]


@pytest.fixture
def launcher(tmp_path: Path) -> Launcher:
    """slim-run for a run directory of its own; scope: test."""
    return Launcher(tmp_path)


@pytest.fixture
def slimd(tmp_path: Path) -> Iterator[FakeSlimd]:
    """A fake slimd that acknowledges; scope: test. Shares the directory with `launcher`."""
    with FakeSlimd(tmp_path) as fake:
        yield fake


@pytest.fixture
def away() -> Iterator[str]:
    """Process id of somebody in a network namespace of its own; scope: test."""
    with subprocess.Popen(
        ["unshare", "--net", "sh", "-c", "echo ready; exec cat"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"ready\n"
        yield str(holder.pid)
        holder.kill()


@pytest.fixture
def named() -> Iterator[str]:
    """Name of a network namespace of ip-netns(8); scope: test."""
    name = f"slimtest-{uuid.uuid4().hex[:8]}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    yield name
    subprocess.run(["ip", "netns", "delete", name], check=True)


def netns_of(path: str) -> str:
    return f"net:[{os.stat(path).st_ino}]"


def test_the_command_keeps_the_process_id_and_is_registered_with_it(
    slimd: FakeSlimd, launcher: Launcher
) -> None:
    process = launcher.start("--workload", "w", "--label", "a=b", "--", "sh", "-c", "echo $$")
    out, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (0, "")
    assert int(out) == process.pid
    (registration,) = slimd.registrations
    assert registration.pid == process.pid
    assert registration.uid == 0
    assert registration.netns == os.stat("/proc/self/ns/net").st_ino
    assert registration.message.workload == "w"
    assert registration.message.labels == {"a": "b"}
    assert registration.message.fail_mode == "closed"
    assert registration.message.command == ["sh", "-c", "echo $$"]
    assert registration.message.prepared is None


def test_exit_status_and_death_by_signal_are_the_commands_own(
    slimd: FakeSlimd, launcher: Launcher
) -> None:
    assert launcher.run("--", "sh", "-c", "exit 37").returncode == 37
    assert launcher.run("--", "sh", "-c", "kill -USR1 $$").returncode == -signal.SIGUSR1


REPORT = """
env -0 | tr '\\0' '\\n' | sort | grep -v -e '^_=' -e '^PWD='
umask; pwd; ls /proc/self/fd; ulimit -a
grep -E '^(Sig|Shd|Cap|Uid|Gid|Groups|NoNewPrivs)' /proc/self/status | grep -v SigQ
ps -o nice=,pgid=,sid= -p $$
cat
"""


@pytest.mark.parametrize("blocked", [set(), {signal.SIGUSR1, signal.SIGTERM}])
def test_everything_a_program_inherits_is_as_without_slim_run(
    slimd: FakeSlimd, launcher: Launcher, tmp_path: Path, blocked: set[signal.Signals]
) -> None:
    def prepare() -> None:
        os.umask(0o123)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        signal.signal(signal.SIGQUIT, signal.SIG_IGN)

    def report(argv: list[str], fd: int) -> list[str]:
        done = subprocess.run(
            [*argv, "sh", "-c", REPORT],
            input="stdin\n",
            capture_output=True,
            text=True,
            # The C locale makes Python change its environment.
            env={"PATH": os.environ["PATH"], "LC_ALL": "", "odd name": "a\nb"},
            preexec_fn=prepare,
            pass_fds=[fd],
            cwd=tmp_path,
            process_group=os.getpgid(0),
            timeout=30,
        )
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout.splitlines()

    with open("/dev/null") as inherited:
        natively = report([], inherited.fileno())
        under_slim = report(launcher.argv("--"), inherited.fileno())
    assert under_slim == natively
    assert "stdin" in natively


def test_socket_calls_of_the_command_reach_the_supervisor_and_nothing_else_does(
    slimd: FakeSlimd, launcher: Launcher
) -> None:
    # Importing the module above this one makes an epoll set.
    code = """
import _socket
a = _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM)
b = _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM)
a.bind(("127.0.0.1", 0))
a.listen()
b.connect(a.getsockname())
b.sendall(b"x")
a.close()
b.close()
"""
    done = launcher.run("--", sys.executable, "-I", "-c", code)
    assert (done.returncode, done.stderr) == (0, "")
    trapped = set(slimd.supervisors[0].numbers())
    names = {name for name, number in NUMBERS.items() if number in trapped}
    assert names == {"bind", "listen", "getsockname", "connect"}


def test_slim_run_itself_issues_no_trapped_call(slimd: FakeSlimd, launcher: Launcher) -> None:
    assert launcher.run("--user", "root", "--", "true").returncode == 0
    assert slimd.supervisors[0].numbers() == []


def test_the_filter_ends_with_the_command(slimd: FakeSlimd, launcher: Launcher) -> None:
    assert launcher.run("--", "true").returncode == 0
    slimd.supervisors[0].wait_for_end()


@pytest.mark.needs_netns
def test_a_namespace_is_entered_by_process_id_and_by_path(
    slimd: FakeSlimd, launcher: Launcher, away: str
) -> None:
    path = f"/proc/{away}/ns/net"
    for netns in (away, path):
        done = launcher.run("--netns", netns, "--", "readlink", "/proc/self/ns/net")
        assert (done.returncode, done.stdout.strip()) == (0, netns_of(path))
    assert {each.netns for each in slimd.registrations} == {os.stat(path).st_ino}


@pytest.mark.needs_netns
@pytest.mark.needs_program("ip")
def test_a_named_namespace_is_entered_and_keeps_the_mounts(
    slimd: FakeSlimd, launcher: Launcher, named: str
) -> None:
    show = "readlink /proc/self/ns/net; readlink /proc/self/ns/mnt; cat /proc/self/mountinfo"
    done = launcher.run("--netns", named, "--", "sh", "-c", show)
    net, mounts, *table = done.stdout.splitlines()
    assert net == netns_of(f"/run/netns/{named}")
    assert mounts == f"mnt:[{os.stat('/proc/self/ns/mnt').st_ino}]"
    assert "\n".join(table) == Path("/proc/self/mountinfo").read_text().strip()


@pytest.fixture
def etc_of_named(named: str) -> Iterator[Path]:
    """/etc/netns/NAME with a hosts file of its own; scope: test. Depends on `named`."""
    own = Path("/etc/netns", named)
    had_parent = own.parent.exists()
    own.mkdir(parents=True)
    (own / "hosts").write_text("192.0.2.7 only-here\n")
    yield own
    shutil.rmtree(own)
    if not had_parent:
        with contextlib.suppress(OSError):
            own.parent.rmdir()


@pytest.mark.needs_netns
@pytest.mark.needs_program("ip")
def test_files_of_a_named_namespace_cover_those_of_etc_and_sys_stays(
    slimd: FakeSlimd, launcher: Launcher, etc_of_named: Path
) -> None:
    (etc_of_named / "slim-test-absent").write_text("")
    show = "cat /etc/hosts; grep -c . /proc/self/mountinfo; ls /sys/class/net"
    outside = subprocess.check_output(["sh", "-c", show], text=True)
    done = launcher.run("--netns", etc_of_named.name, "--", "sh", "-c", show)
    hosts = Path("/etc/hosts").read_text()
    count, devices = outside.removeprefix(hosts).split("\n", 1)
    assert done.returncode == 0
    assert done.stdout == f"192.0.2.7 only-here\n{int(count) + 1}\n{devices}"
    (warning,) = done.stderr.splitlines()
    assert "slim-test-absent" in warning


@pytest.mark.needs_netns
@pytest.mark.needs_program("ip")
def test_files_of_a_named_namespace_are_not_seen_outside_of_it(
    slimd: FakeSlimd, launcher: Launcher, etc_of_named: Path
) -> None:
    # As under systemd, where mounts propagate unless somebody stops them.
    shared = ["unshare", "--mount", "--propagation", "shared"]
    started = shlex.join(launcher.argv("--netns", etc_of_named.name, "--", "cat", "/etc/hosts"))
    said = subprocess.check_output([*shared, "sh", "-c", f"{started}; cat /etc/hosts"], text=True)
    assert said == "192.0.2.7 only-here\n" + Path("/etc/hosts").read_text()


@pytest.mark.needs_netns
def test_an_overlay_without_a_namespace_is_entered_through_slimd(
    tmp_path: Path, launcher: Launcher, away: str
) -> None:
    path = f"/proc/{away}/ns/net"
    with FakeSlimd(tmp_path, namespace=path) as fake:
        new = ("--overlay", "blue", "--ip", "10.0.0.9")
        done = launcher.run(*new, "--", "readlink", "/proc/self/ns/net")
    assert (done.returncode, done.stdout.strip()) == (0, netns_of(path))
    assert [(each.overlay, each.address) for each in fake.prepared] == [("blue", "10.0.0.9")]
    (registration,) = fake.registrations
    assert registration.message.prepared == "prepared-1"
    assert registration.message.overlay == "blue"
    assert registration.netns == os.stat(path).st_ino


def test_another_user_gets_the_users_groups_and_no_lock_on_privileges(
    slimd: FakeSlimd, launcher: Launcher
) -> None:
    show = "id -u; id -g; id -G; grep NoNewPrivs /proc/self/status; grep CapEff /proc/self/status"
    done = launcher.run("--user", "nobody", "--", "sh", "-c", show, extra_groups=[4, 5])
    groups = subprocess.check_output(["id", "-G", "nobody"], text=True).strip()
    uid, gid, own_groups, no_new_privs, capabilities = done.stdout.splitlines()
    assert (uid, gid, own_groups) == ("65534", "65534", groups)
    assert no_new_privs.split()[1] == "0"
    assert int(capabilities.split()[1], 16) == 0
    assert done.stderr == ""


@pytest.mark.needs_program("setpriv")
def test_without_cap_sys_admin_no_new_privs_is_set_and_said(
    slimd: FakeSlimd, launcher: Launcher
) -> None:
    dropping = ["setpriv", "--bounding-set", "-sys_admin"]
    show = ["grep", "NoNewPrivs", "/proc/self/status"]
    done = subprocess.run(
        [*dropping, *launcher.argv("--", *show)], capture_output=True, text=True, timeout=30
    )
    assert done.stdout.split() == ["NoNewPrivs:", "1"]
    (line,) = done.stderr.splitlines()
    assert "setuid programs" in line
    assert len(slimd.registrations) == 1


@pytest.mark.needs_netns
def test_fail_open_runs_the_command_in_its_namespace_without_a_filter(
    launcher: Launcher, away: str
) -> None:
    show = "readlink /proc/self/ns/net; grep Seccomp: /proc/self/status; id -u"
    arguments = ("--fail-open", "--netns", away, "--user", "nobody", "--", "sh", "-c", show)
    done = launcher.run(*arguments)
    assert done.stdout.split() == [netns_of(f"/proc/{away}/ns/net"), "Seccomp:", "0", "65534"]
    assert "plain overlay" in done.stderr
