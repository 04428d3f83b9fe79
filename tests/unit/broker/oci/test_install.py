"""What is changed for podman and docker: shown, repeated, taken back."""

from __future__ import annotations

import json
import tomllib
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from slim.broker.cli import oci as command
from slim.broker.cli.main import slimctl
from slim.broker.errors import ConfigError
from slim.broker.oci import install

if TYPE_CHECKING:
    from pathlib import Path

    from click.testing import Result

SOCKET = "/run/slim/oci.sock"
PROGRAM = "/usr/bin/slim-runc"
PROFILE = {
    "defaultAction": "SCMP_ACT_ERRNO",
    "syscalls": [{"names": ["connect", "read"], "action": "SCMP_ACT_ALLOW"}],
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A system with podman's profile."""
    write(tmp_path, "usr/share/containers/seccomp.json", json.dumps(PROFILE))
    return tmp_path


def write(root: Path, name: str, text: str) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def everything(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()
    }


def apply(changes: list[install.Change]) -> None:
    for change in changes:
        change.apply()


def run(*words: str, answer: str = "") -> Result:
    return CliRunner().invoke(slimctl, ["--run-dir", "/run/slim", "oci", *words], input=answer)


# --- podman -----------------------------------------------------------------------------------


def test_podman_gets_a_file_of_ours_and_loses_it_again(root: Path) -> None:
    before = everything(root)
    apply(install.plan_podman(root, SOCKET, "", None))
    drop_in = tomllib.loads((root / install.PODMAN_DROP_IN.lstrip("/")).read_text())
    assert drop_in == {"containers": {"seccomp_profile": install.PODMAN_PROFILE}}
    profile = json.loads((root / install.PODMAN_PROFILE.lstrip("/")).read_bytes())
    assert profile["listenerPath"] == SOCKET
    assert install.plan_podman(root, SOCKET, "", None) == []
    apply(install.unplan_podman(root))
    assert everything(root) == before
    assert install.unplan_podman(root) == []


def test_the_profile_that_the_operator_chose_is_the_base(root: Path) -> None:
    write(
        root,
        "etc/containers/containers.conf",
        '[containers]\nseccomp_profile = "/etc/theirs.json"\n',
    )
    write(root, "etc/theirs.json", json.dumps(PROFILE | {"theirs": True}))
    apply(install.plan_podman(root, SOCKET, "", None))
    written = json.loads((root / install.PODMAN_PROFILE.lstrip("/")).read_bytes())
    assert written["theirs"]
    # Ours is no base, however often it is installed.
    assert install.plan_podman(root, SOCKET, "", None) == []


def test_a_later_file_has_the_last_word_on_the_base(root: Path) -> None:
    for name in ("first", "second"):
        write(
            root,
            f"etc/containers/containers.conf.d/{name}.conf",
            f'[containers]\nseccomp_profile = "/etc/{name}.json"\n',
        )
        write(root, f"etc/{name}.json", json.dumps(PROFILE))
    assert str(install.find_podman_profile(root)) == "/etc/second.json"


def test_without_a_profile_podman_is_not_installed(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no seccomp profile of podman's"):
        install.plan_podman(tmp_path, SOCKET, "", None)


def test_a_configuration_that_is_not_understood_is_left_alone(root: Path) -> None:
    write(root, "etc/containers/containers.conf", "[containers\n")
    with pytest.raises(ConfigError, match=r"containers\.conf is not understood"):
        install.plan_podman(root, SOCKET, "", None)


# --- docker -----------------------------------------------------------------------------------


def test_docker_gets_a_runtime_beside_its_own_keys(root: Path) -> None:
    path = write(root, "etc/docker/daemon.json", '{"debug": true, "runtimes": {"x": {}}}')
    apply(install.plan_docker(root, PROGRAM))
    assert json.loads(path.read_text()) == {
        "debug": True,
        "runtimes": {"x": {}, "slim": {"path": PROGRAM}},
    }
    assert install.plan_docker(root, PROGRAM) == []
    apply(install.unplan_docker(root))
    assert json.loads(path.read_text()) == {"debug": True, "runtimes": {"x": {}}}
    assert install.unplan_docker(root) == []


def test_a_docker_without_configuration_has_none_again(root: Path) -> None:
    before = everything(root)
    apply(install.plan_docker(root, PROGRAM))
    apply(install.unplan_docker(root))
    assert everything(root) == before


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "not understood"),
        ("[]", "not understood"),
        ('{"runtimes": []}', "not understood"),
        ('{"runtimes": {"slim": {"path": "/other"}}}', "another runtime"),
    ],
)
def test_a_daemon_json_that_is_in_the_way_is_left_alone(root: Path, text: str, why: str) -> None:
    write(root, "etc/docker/daemon.json", text)
    with pytest.raises(ConfigError, match=why):
        install.plan_docker(root, PROGRAM)


def test_the_default_runtime_is_not_taken_away(root: Path) -> None:
    text = {"default-runtime": "slim", "runtimes": {"slim": {"path": PROGRAM}}}
    write(root, "etc/docker/daemon.json", json.dumps(text))
    with pytest.raises(ConfigError, match="is the default-runtime"):
        install.unplan_docker(root)


def test_the_files_mode_is_kept(root: Path) -> None:
    path = write(root, "etc/docker/daemon.json", "{}")
    path.chmod(0o600)
    apply(install.plan_docker(root, PROGRAM))
    assert path.stat().st_mode & 0o777 == 0o600


# --- the command ------------------------------------------------------------------------------


def test_every_change_is_shown_and_nothing_done_without_a_yes(root: Path) -> None:
    before = everything(root)
    done = run("install", "podman", "--root", str(root), answer="n\n")
    assert done.exit_code == 1
    assert everything(root) == before
    assert f'+seccomp_profile = "{install.PODMAN_PROFILE}"' in done.output
    assert "seccomp-podman.json" in done.output


def test_installing_twice_and_uninstalling(root: Path) -> None:
    before = everything(root)
    assert run("install", "podman", "--root", str(root), answer="y\n").exit_code == 0
    assert "nothing to change" in run("install", "podman", "--root", str(root)).output
    assert run("uninstall", "podman", "--yes", "--root", str(root)).exit_code == 0
    assert everything(root) == before


def test_docker_is_told_of_the_program_beside_slimctl(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "_runtime_program", lambda: PROGRAM)
    assert run("install", "docker", "--yes", "--root", str(root)).exit_code == 0
    config = json.loads((root / "etc/docker/daemon.json").read_text())
    assert config == {"runtimes": {"slim": {"path": PROGRAM}}}


def test_the_profile_is_printed_or_written(root: Path) -> None:
    base = str(root / "usr/share/containers/seccomp.json")
    printed = run("profile", "--base", base, "--metadata", '{"namespace": "shop"}').output
    assert json.loads(printed)["listenerMetadata"] == '{"namespace": "shop"}'
    output = root / "profile.json"
    assert run("profile", "--base", base, "--output", str(output)).exit_code == 0
    assert json.loads(output.read_text())["listenerPath"] == SOCKET
