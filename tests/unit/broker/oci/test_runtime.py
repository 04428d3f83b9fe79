"""slim-runc: which bundles it changes, and what it hands to runc."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from slim.broker.errors import ConfigError
from slim.broker.oci import runtime

SOCKET = "/run/slim/oci.sock"
SECTION = {
    "defaultAction": "SCMP_ACT_ERRNO",
    "architectures": ["SCMP_ARCH_X86_64"],
    "syscalls": [{"names": ["connect", "read"], "action": "SCMP_ACT_ALLOW"}],
}
PROGRAM = Path(sys.executable).parent / "slim-runc"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    config = {"ociVersion": "1.0.2", "linux": {"seccomp": SECTION}, "hooks": {"x": [1]}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


def config(bundle: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((bundle / "config.json").read_text())
    return found


def run(bundle: Path, *words: str, real: str = "echo") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(PROGRAM), *words],
        env={"PATH": "/usr/bin:/bin", "SLIM_OCI_RUNTIME": real, "SLIM_OCI_SOCKET": SOCKET},
        cwd=bundle,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_the_bundles_seccomp_section_changes_and_nothing_else(bundle: Path) -> None:
    before = config(bundle)
    runtime.change_bundle(bundle, SOCKET)
    after = config(bundle)
    section = after["linux"].pop("seccomp")
    del before["linux"]["seccomp"]
    assert after == before
    assert section["listenerPath"] == SOCKET
    assert section["architectures"] == SECTION["architectures"]
    actions = {tuple(rule["names"]): rule["action"] for rule in section["syscalls"]}
    assert actions["connect",] == "SCMP_ACT_NOTIFY"


def test_a_bundle_is_changed_once(bundle: Path) -> None:
    runtime.change_bundle(bundle, SOCKET)
    before = (bundle / "config.json").read_bytes()
    runtime.change_bundle(bundle, SOCKET)
    assert (bundle / "config.json").read_bytes() == before


def test_an_unconfined_container_is_trapped_too(bundle: Path) -> None:
    (bundle / "config.json").write_text('{"linux": {}}')
    runtime.change_bundle(bundle, SOCKET)
    section = config(bundle)["linux"]["seccomp"]
    assert (section["defaultAction"], section["listenerPath"]) == ("SCMP_ACT_ALLOW", SOCKET)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"linux": []}', '{"linux": {"seccomp": 1}}'])
def test_what_is_no_bundle_is_refused(bundle: Path, text: str) -> None:
    (bundle / "config.json").write_text(text)
    with pytest.raises(ConfigError):
        runtime.change_bundle(bundle, SOCKET)
    assert (bundle / "config.json").read_text() == text


@pytest.mark.parametrize(
    "words",
    [
        ("create", "--bundle", "BUNDLE", "web"),
        ("--root", "/run/docker", "--log", "create", "run", "-b", "BUNDLE", "web"),
        ("--systemd-cgroup", "create", "--bundle=BUNDLE", "--pid-file", "delete", "web"),
        ("create", "web"),
    ],
)
def test_a_container_that_is_created_is_changed_and_runc_gets_every_word(
    bundle: Path, words: tuple[str, ...]
) -> None:
    given = [word.replace("BUNDLE", str(bundle)) for word in words]
    done = run(bundle, *given)
    assert done.stdout.split() == given
    assert config(bundle)["linux"]["seccomp"]["listenerPath"] == SOCKET


@pytest.mark.parametrize(
    "words", [("state", "create"), ("--version",), ("kill", "web", "KILL"), ()]
)
def test_other_commands_go_straight_to_runc(bundle: Path, words: tuple[str, ...]) -> None:
    done = run(bundle, *words)
    assert done.stdout.split() == [*words] or words == ("--version",)
    assert "listenerPath" not in config(bundle)["linux"]["seccomp"]


def test_a_container_whose_calls_cannot_be_trapped_is_not_created(bundle: Path) -> None:
    (bundle / "config.json").write_text("{}")
    done = run(bundle, "create", "web")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("slim-runc: ")


def test_a_runtime_that_is_not_there_is_told(bundle: Path) -> None:
    done = run(bundle, "state", "web", real="no-such-runtime")
    assert done.returncode == 127
    assert "cannot run no-such-runtime" in done.stderr
