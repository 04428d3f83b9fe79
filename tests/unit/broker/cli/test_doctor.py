"""doctor: each finding has its remedy, and only what Slim cannot do without fails."""

from __future__ import annotations

import json
import resource
import socket
import time
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from slim.broker import queues
from slim.broker.admin import messages
from slim.broker.cli import doctor
from slim.broker.cli.main import slimctl as group
from slim.broker.kernel import features
from slim.broker.kernel.features import Clock, ListenerFeatures
from slim.broker.peers.pki import AUTHORITY_CERTIFICATE, create_authority, issue_certificate
from support.configuration import PEER_FILES, PEERS, config_text
from support.fake_admin import FakeProvider, serving, status
from support.terminal import slimctl

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from click.testing import Result

    from slim.broker.cli.checks import Check

EVERYTHING = ListenerFeatures(adds_fds=True, wakes_in_sync=True)


@pytest.fixture
def sysctls(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What /proc/sys says, for the test to change."""
    values = {
        "kernel.seccomp.actions_avail": "errno user_notif allow",
        "kernel.yama.ptrace_scope": "1",
        "kernel.io_uring_disabled": "0",
        "net.ipv4.tcp_fastopen": "1",
        "net.ipv4.ip_local_port_range": "32768\t60999",
    }
    monkeypatch.setattr(features, "read_sysctl", values.get)
    return values


@pytest.fixture
def good_host(monkeypatch: pytest.MonkeyPatch, sysctls: dict[str, str]) -> None:
    """A host on which every probe finds what it looks for."""
    monkeypatch.setattr(features, "kernel_release", lambda: (6, 12))
    for probe in (
        "has_user_notification",
        "has_pidfd_getfd",
        "has_pidfd_thread",
        "has_netns_cookie",
        "can_read_memory",
    ):
        monkeypatch.setattr(features, probe, lambda: True)
    monkeypatch.setattr(features, "read_notif_sizes", lambda: features.NOTIF_SIZES)
    monkeypatch.setattr(features, "probe_listener", lambda: EVERYTHING)
    monkeypatch.setattr(features, "cgroup2_mount", lambda: "/sys/fs/cgroup")
    monkeypatch.setattr(
        features, "effective_capabilities", lambda: doctor.NEEDED_CAPABILITIES | {"CAP_BPF"}
    )
    monkeypatch.setattr(features, "read_clock", lambda: Clock(0, 0))
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (1024, 1 << 20))


def examine(run_dir: Path, *words: str) -> Result:
    return CliRunner().invoke(group, ["--run-dir", str(run_dir), "doctor", *words])


def checks_of(result: Result) -> dict[str, dict[str, str]]:
    answer = json.loads(result.stdout)
    assert set(answer) == {"version", "checks"}
    assert answer["version"] == 1
    return {check["name"]: check for check in answer["checks"]}


@pytest.mark.usefixtures("good_host")
def test_a_good_host_with_a_running_slimd_is_all_ok(tmp_path: Path) -> None:
    processes = [messages.ProcessStatus(role, 7) for role in ("control", "traps", "keeper")]
    with serving(tmp_path, FakeProvider(status_answer=status(processes=processes))):
        result = examine(tmp_path, "--json")
    assert result.exit_code == 0
    checks = checks_of(result)
    assert {check["outcome"] for check in checks.values()} == {"ok"}
    assert checks["slimd"]["found"] == "control 7, traps 7, keeper 7"


@pytest.mark.usefixtures("good_host")
def test_a_host_without_slimd_is_warned_about_and_passes(tmp_path: Path) -> None:
    result = examine(tmp_path, "--json")
    assert result.exit_code == 0
    checks = checks_of(result)
    warned = {name for name, check in checks.items() if check["outcome"] != "ok"}
    assert warned == {"slimd", "keeper"}
    assert "slimd --config" in checks["slimd"]["remedy"]


@pytest.mark.usefixtures("good_host")
def test_what_slim_cannot_do_without_fails_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "has_pidfd_getfd", lambda: False)
    result = examine(tmp_path)
    assert result.exit_code == 1
    assert "fail pidfd_getfd" in result.stdout
    assert "-> allow pidfd_getfd(2)" in result.stdout
    assert result.stdout.splitlines()[-1].endswith(" 1 fail")


@pytest.mark.parametrize(
    ("probe", "value", "check", "outcome"),
    [
        ("kernel_release", (5, 13), doctor.check_kernel, "fail"),
        ("kernel_release", (5, 14), doctor.check_kernel, "ok"),
        ("has_user_notification", False, doctor.check_seccomp, "fail"),
        ("read_notif_sizes", (96, 24, 64), doctor.check_seccomp, "fail"),
        ("can_read_memory", False, doctor.check_memory, "fail"),
        ("has_netns_cookie", False, doctor.check_netns_cookie, "fail"),
        ("has_pidfd_thread", False, doctor.check_pidfd_thread, "warn"),
        ("read_clock", Clock(features.TIME_ERROR, 0), doctor.check_clock, "warn"),
        ("read_clock", Clock(0, features.STA_UNSYNC), doctor.check_clock, "warn"),
        ("effective_capabilities", frozenset({"CAP_CHOWN"}), doctor.check_capabilities, "fail"),
        ("cgroup2_mount", None, doctor.check_cgroup, "ok"),
        ("can_pace", True, doctor.check_pacing, "ok"),
        ("can_pace", False, doctor.check_pacing, "fail"),
    ],
)
@pytest.mark.usefixtures("good_host")
def test_a_probe_decides_its_check(
    monkeypatch: pytest.MonkeyPatch,
    probe: str,
    value: object,
    check: Callable[[], Check],
    outcome: str,
) -> None:
    monkeypatch.setattr(features, probe, lambda: value)
    found = check()
    assert found.outcome == outcome
    assert bool(found.remedy) == (outcome != "ok")


@pytest.mark.parametrize(
    ("name", "value", "check", "outcome"),
    [
        ("kernel.yama.ptrace_scope", "3", doctor.check_ptrace, "fail"),
        ("kernel.yama.ptrace_scope", "2", doctor.check_ptrace, "ok"),
        ("net.ipv4.tcp_fastopen", "0", doctor.check_fast_open, "warn"),
        ("net.ipv4.tcp_fastopen", "3", doctor.check_fast_open, "ok"),
        ("net.ipv4.ip_local_port_range", "15000\t20000", doctor.check_local_ports, "warn"),
        ("net.ipv4.ip_local_port_range", "30000\t60999", doctor.check_local_ports, "ok"),
    ],
)
def test_a_sysctl_decides_its_check(
    sysctls: dict[str, str], name: str, value: str, check: Callable[[], Check], outcome: str
) -> None:
    sysctls[name] = value
    found = check()
    assert found.outcome == outcome
    assert bool(found.remedy) == (outcome != "ok")


def test_fast_open_keeps_the_servers_bit_in_its_remedy(sysctls: dict[str, str]) -> None:
    sysctls["net.ipv4.tcp_fastopen"] = "2"
    assert "sysctl -w net.ipv4.tcp_fastopen=3" in doctor.check_fast_open().remedy


def test_a_kernel_without_yama_is_fine(sysctls: dict[str, str]) -> None:
    del sysctls["kernel.yama.ptrace_scope"]
    assert doctor.check_ptrace().outcome == "ok"


@pytest.mark.parametrize(("limit", "outcome"), [(1024, "warn"), (8192, "ok"), (-1, "ok")])
def test_the_hard_limit_of_open_files(
    monkeypatch: pytest.MonkeyPatch, limit: int, outcome: str
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (0, limit))
    assert doctor.check_files().outcome == outcome


def test_missing_capabilities_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        features, "effective_capabilities", lambda: doctor.NEEDED_CAPABILITIES - {"CAP_SYS_PTRACE"}
    )
    assert doctor.check_capabilities().found.startswith("missing: CAP_SYS_PTRACE")


def test_a_clock_in_the_past_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "gmtime", lambda: time.struct_time([1970] + [1] * 8))
    assert doctor.check_clock().outcome == "fail"


def test_one_listener_gives_two_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    found = ListenerFeatures(adds_fds=False, wakes_in_sync=False)
    monkeypatch.setattr(features, "probe_listener", lambda: found)
    assert [check.outcome for check in doctor.check_listener()] == ["fail", "warn"]


def test_a_host_that_gives_no_listener_is_told_why(monkeypatch: pytest.MonkeyPatch) -> None:
    found = ListenerFeatures(error="seccomp: EBUSY")
    monkeypatch.setattr(features, "probe_listener", lambda: found)
    (check,) = doctor.check_listener()
    assert (check.outcome, check.found) == ("fail", "seccomp: EBUSY")
    assert "slim-run" in check.remedy


@pytest.mark.parametrize(
    ("missing", "outcome"), [(None, "ok"), (("no HTB", "it takes CONFIG_NET_SCH_HTB"), "warn")]
)
def test_what_limits_workloads_is_tried(
    monkeypatch: pytest.MonkeyPatch, missing: tuple[str, str] | None, outcome: str
) -> None:
    monkeypatch.setattr(queues, "probe", lambda: missing)
    check = doctor.check_queues()
    assert check.outcome == outcome
    assert (check.found, check.remedy) == (missing or (check.found, ""))


def test_a_process_that_does_not_run_is_a_warning(tmp_path: Path) -> None:
    with serving(tmp_path, FakeProvider()):
        (check,) = doctor.check_slimd(tmp_path)
    assert (check.outcome, check.found) == ("warn", "control 41, traps down")


def test_a_keeper_that_outlives_slimd_is_found_without_being_disturbed(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as keeper:
        keeper.bind(str(tmp_path / "keeper.sock"))
        assert doctor.check_keeper(tmp_path).outcome == "warn"
        keeper.listen(1)
        assert [check.outcome for check in doctor.check_slimd(tmp_path)] == ["warn", "ok"]
        keeper.setblocking(False)
        with pytest.raises(BlockingIOError):
            keeper.accept()


def write_config(directory: Path, text: str, *, days: int = 30) -> Path:
    """A configuration and the certificate of host a that its [peers] names."""
    create_authority(directory, name="test", days=30)
    certificate, key = issue_certificate(
        directory, "a", ["10.1.0.0/24"], days=days, out=directory, force=False
    )
    for file, name in zip(
        (certificate, key, directory / AUTHORITY_CERTIFICATE), PEER_FILES, strict=True
    ):
        file.rename(directory / name)
    path = directory / "slimd.toml"
    path.write_text(text)
    return path


@pytest.fixture
def _host_of_the_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    for check in ("check_host_addresses", "check_host_ports"):
        monkeypatch.setattr(f"slim.broker.config.{check}", lambda config: None)


@pytest.mark.usefixtures("good_host", "_host_of_the_configuration")
def test_a_configuration_adds_the_firewall_line_and_its_run_dir(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    text = config_text(PEERS, top=f'run_dir = "{run_dir}"\n')
    path = write_config(tmp_path, text)
    with serving(run_dir, FakeProvider()):
        result = CliRunner().invoke(
            group, ["doctor", "--json", "--config", str(path)], env={"SLIM_RUN_DIR": ""}
        )
    checks = checks_of(result)
    assert checks["config"]["outcome"] == "ok", result.stdout
    assert "tcp dport { 20000-29999, 7946 } accept" in checks["firewall"]["remedy"]
    assert checks["slimd"]["found"] == "control 41, traps down"
    assert "local ports" not in checks


@pytest.mark.usefixtures("good_host")
def test_a_run_dir_that_was_given_outweighs_the_configurations(tmp_path: Path) -> None:
    path = write_config(tmp_path, config_text(top='run_dir = "/nonexistent"\n'))
    with serving(tmp_path, FakeProvider()):
        checks = checks_of(examine(tmp_path, "--json", "--config", str(path)))
    assert checks["slimd"]["found"] == "control 41, traps down"


@pytest.mark.usefixtures("good_host")
def test_mistakes_of_a_configuration_are_findings_too(tmp_path: Path) -> None:
    path = write_config(tmp_path, "guard = 3\n")
    result = examine(tmp_path, "--json", "--config", str(path))
    assert result.exit_code == 1
    check = checks_of(result)["config"]
    assert check["outcome"] == "fail"
    assert str(path) in check["found"]
    assert check["remedy"]


@pytest.mark.usefixtures("good_host")
def test_an_address_that_is_not_this_hosts_fails(tmp_path: Path) -> None:
    result = examine(tmp_path, "--json", "--config", str(write_config(tmp_path, config_text())))
    assert result.exit_code == 1
    assert "192.0.2.1" in checks_of(result)["host addresses"]["found"]


@pytest.mark.parametrize(
    ("days", "name", "outcome"), [(30, "a", "ok"), (13, "a", "warn"), (30, "b", "fail")]
)
@pytest.mark.usefixtures("good_host", "_host_of_the_configuration")
def test_the_certificate_must_be_this_hosts_and_last(
    tmp_path: Path, days: int, name: str, outcome: str
) -> None:
    text = config_text(PEERS).replace('name = "a"', f'name = "{name}"')
    result = examine(tmp_path, "--json", "--config", str(write_config(tmp_path, text, days=days)))
    assert result.exit_code == (outcome == "fail")
    check = checks_of(result)["certificate"]
    assert check["outcome"] == outcome
    assert bool(check["remedy"]) == (outcome != "ok")


@pytest.mark.usefixtures("good_host", "_host_of_the_configuration")
def test_a_certificate_that_is_none_fails(tmp_path: Path) -> None:
    path = write_config(tmp_path, config_text(PEERS))
    (tmp_path / PEER_FILES[0]).write_text("nothing")
    result = examine(tmp_path, "--json", "--config", str(path))
    assert result.exit_code == 1
    assert str(tmp_path / PEER_FILES[0]) in checks_of(result)["certificate"]["found"]


def test_this_host_can_be_examined_for_real(tmp_path: Path) -> None:
    done = slimctl("--run-dir", tmp_path, "doctor", "--json")
    checks = json.loads(done.stdout)["checks"]
    assert done.returncode == any(check["outcome"] == "fail" for check in checks)
    assert all(check["found"] for check in checks)
    assert all(check["remedy"] for check in checks if check["outcome"] != "ok")
