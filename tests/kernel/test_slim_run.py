"""slim-run with a real kernel and a slimd that only lets calls go on (support.fake_slimd)."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from slim.broker import calls
from support.fake_slimd import Behaviour, FakeSlimd

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.needs_root

NUMBERS = calls._NUMBERS[os.uname().machine]
ENTRY = "import sys; from slim.broker.run.command import main; sys.exit(main())"
SLIM_RUN = [sys.executable, "-c", ENTRY]


class Launcher:
    """Runs slim-run with a run directory; `run` waits, `start` does not."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir

    def argv(self, *arguments: str) -> list[str]:
        return [*SLIM_RUN, "--run-dir", str(self.run_dir), *arguments]

    def run(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.argv(*arguments), capture_output=True, text=True, timeout=30, **options
        )

    def start(self, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.argv(*arguments),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **options,
        )


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


@pytest.mark.needs_netns
@pytest.mark.needs_program("ip")
def test_files_of_a_named_namespace_cover_those_of_etc(
    slimd: FakeSlimd, launcher: Launcher, named: str
) -> None:
    own = Path("/etc/netns", named)
    had_directory = own.parent.exists()
    own.mkdir(parents=True)
    try:
        (own / "hosts").write_text("192.0.2.7 only-here\n")
        (own / "slim-test-absent").write_text("")
        show = "cat /etc/hosts; findmnt -n -o TARGET /sys/fs/cgroup | head -1; ls /sys/class/net"
        outside = subprocess.check_output(["sh", "-c", show], text=True)
        done = launcher.run("--netns", named, "--", "sh", "-c", show)
    finally:
        shutil.rmtree(own)
        if not had_directory:
            with contextlib.suppress(OSError):
                own.parent.rmdir()
    hosts = Path("/etc/hosts").read_text()
    assert done.returncode == 0
    assert "only-here" not in hosts
    assert done.stdout == outside.replace(hosts, "192.0.2.7 only-here\n", 1)
    assert "slim-test-absent" in done.stderr
    assert len(done.stderr.splitlines()) == 1


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


def test_an_overlay_that_slimd_does_not_know_starts_nothing(
    slimd: FakeSlimd, launcher: Launcher
) -> None:
    done = launcher.run("--overlay", "blue", "--", "echo", "ran")
    assert (done.returncode, done.stdout) == (5, "")
    assert done.stderr.splitlines() == [
        "slim-run: slimd refuses: no overlay blue",
        "slim-run: hint: see slimctl overlays",
    ]


@pytest.mark.parametrize(
    ("netns", "complaint"),
    [
        ("no-such-name-here", "/run/netns/no-such-name-here: No such file"),
        ("/proc/self/ns/mnt", "not a network namespace"),
        ("/nowhere/at/all", "No such file"),
        ("4194305", "/proc/4194305/ns/net: No such file"),
        ("..", "not the name"),
    ],
)
def test_a_wrong_namespace_starts_nothing(
    slimd: FakeSlimd, launcher: Launcher, netns: str, complaint: str
) -> None:
    done = launcher.run("--netns", netns, "--", "echo", "ran")
    assert (done.returncode, done.stdout) == (1, "")
    assert complaint in done.stderr
    assert slimd.registrations == []


def test_another_user_gets_the_users_groups_and_no_lock_on_privileges(
    slimd: FakeSlimd, launcher: Launcher
) -> None:
    show = "id -u; id -g; id -G; grep NoNewPrivs /proc/self/status; grep CapEff /proc/self/status"
    done = launcher.run("--user", "nobody", "--", "sh", "-c", show)
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


@pytest.mark.parametrize(
    ("name", "status", "complaint"),
    [
        ("no-such-command-here", 127, "not found"),
        ("/no/such/file", 127, "not found"),
        ("", 127, "not found"),
        ("/etc/passwd", 126, "Permission denied"),
        ("/", 126, "Permission denied"),
        ("{tmp}/no-interpreter", 127, "interpreter"),
        ("{tmp}/text", 126, "#!"),
    ],
)
def test_a_command_that_cannot_be_run_gives_the_shells_status(
    slimd: FakeSlimd, launcher: Launcher, tmp_path: Path, name: str, status: int, complaint: str
) -> None:
    for file, text in (("no-interpreter", "#!/no/such/interpreter\n"), ("text", "true\n")):
        (tmp_path / file).write_text(text)
        (tmp_path / file).chmod(0o755)
    done = launcher.run("--", name.format(tmp=tmp_path))
    assert done.returncode == status
    assert complaint in done.stderr
    assert "Traceback" not in done.stderr
    slimd.supervisors[0].wait_for_end()


def test_without_slimd_the_command_does_not_start(launcher: Launcher) -> None:
    done = launcher.run("--", "echo", "ran")
    assert (done.returncode, done.stdout) == (5, "")
    message, hint = done.stderr.splitlines()
    assert message.startswith(f"slim-run: cannot reach slimd at {launcher.run_dir}/run.sock")
    assert "--fail-open" in hint


@pytest.mark.needs_netns
def test_fail_open_runs_the_command_in_its_namespace_without_a_filter(
    launcher: Launcher, away: str
) -> None:
    show = "readlink /proc/self/ns/net; grep Seccomp: /proc/self/status; id -u"
    arguments = ("--fail-open", "--netns", away, "--user", "nobody", "--", "sh", "-c", show)
    done = launcher.run(*arguments)
    assert done.stdout.split() == [netns_of(f"/proc/{away}/ns/net"), "Seccomp:", "0", "65534"]
    assert "plain overlay" in done.stderr


def test_fail_open_also_covers_a_slimd_of_another_version(
    tmp_path: Path, launcher: Launcher
) -> None:
    with FakeSlimd(tmp_path, protocol=99):
        done = launcher.run("--fail-open", "--", "echo", "ran")
    assert done.stdout == "ran\n"
    assert "version 99" in done.stderr


def test_fail_open_cannot_make_a_namespace(launcher: Launcher) -> None:
    done = launcher.run("--fail-open", "--overlay", "blue", "--", "echo", "ran")
    assert (done.returncode, done.stdout) == (5, "")
    assert "--netns" in done.stderr


@pytest.mark.parametrize("mode", ["--fail-open", "--fail-closed"])
@pytest.mark.parametrize(
    ("behaviour", "complaint"),
    [("refuse", "the host's own namespace"), ("hang up", "slimd closed the connection")],
)
def test_no_command_runs_under_a_filter_that_nobody_supervises(
    tmp_path: Path, launcher: Launcher, behaviour: Behaviour, complaint: str, mode: str
) -> None:
    with FakeSlimd(tmp_path, behaviour) as fake:
        done = launcher.run(mode, "--", "echo", "ran")
        assert fake.registered.wait(10)
    assert (done.returncode, done.stdout) == (5, "")
    assert complaint in done.stderr
    assert "Traceback" not in done.stderr


def test_a_slimd_that_stays_silent_is_given_up(tmp_path: Path) -> None:
    limited = f"from slim.broker.run import session; session.ANSWER_LIMIT_S = 1; {ENTRY}"
    argv = [sys.executable, "-c", limited, "--run-dir", str(tmp_path), "--", "echo", "ran"]
    with FakeSlimd(tmp_path, "stay silent") as fake:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=30)
        fake.supervisors[0].wait_for_end()
    assert (done.returncode, done.stdout) == (5, "")
    assert "no answer within 1 s" in done.stderr


def test_an_interrupt_while_waiting_ends_it_silently_with_its_filter(
    tmp_path: Path, launcher: Launcher
) -> None:
    with FakeSlimd(tmp_path, "stay silent") as fake:
        process = launcher.start("--", "echo", "ran")
        assert fake.registered.wait(10)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=10)
        fake.supervisors[0].wait_for_end()
    assert (process.returncode, out, err) == (-signal.SIGINT, "", "")


def test_slim_run_under_slim_run_names_the_cause(slimd: FakeSlimd, launcher: Launcher) -> None:
    done = launcher.run("--", *launcher.argv("--", "echo", "ran"))
    assert (done.returncode, done.stdout) == (1, "")
    assert "another seccomp agent" in done.stderr
    assert "slim-run under another slim-run" in done.stderr
    assert len(slimd.registrations) == 1
