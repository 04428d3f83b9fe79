"""The file of an overlay: whole, readable, and refused when it is not ours."""

from __future__ import annotations

import json
import os
import threading
from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING

import pytest

from slim.broker.errors import ConfigError, ControlError, SlimError
from slim.broker.overlay import state as state_module
from slim.broker.overlay.settings import OverlaySettings, Segment
from slim.broker.overlay.state import Attachment, OverlayState, StateDirectory, decode, encode

if TYPE_CHECKING:
    from pathlib import Path

STATE = OverlayState(
    settings=OverlaySettings(
        name="web",
        segments=(
            Segment(network=ip_network("10.77.0.0/16"), subnet=ip_network("10.77.1.0/24")),
            Segment(network=ip_network("fd77::/48"), subnet=ip_network("fd77:0:0:1::/64")),
        ),
        underlay=ip_address("192.168.77.1"),
        vni=42,
        mtu=1450,
        port=4789,
    ),
    peers=(ip_address("192.168.77.2"),),
    attachments=(
        Attachment(
            namespace="c1",
            cookie=(1 << 64) - 1,
            device="sc-1",
            interface="eth0",
            addresses=(ip_address("10.77.1.1"), ip_address("fd77:0:0:1::1")),
        ),
    ),
    last=(ip_address("10.77.1.1"),),
)


@pytest.fixture
def directory(tmp_path: Path) -> StateDirectory:
    return StateDirectory(tmp_path)


def test_what_was_saved_is_loaded(directory: StateDirectory) -> None:
    directory.save(STATE)
    assert directory.load("web") == STATE
    assert directory.names() == ["web"]


def test_saving_replaces_the_file_and_leaves_no_other(
    directory: StateDirectory, tmp_path: Path
) -> None:
    directory.save(STATE)
    directory.save(replace(STATE, peers=()))
    assert directory.load("web").peers == ()
    assert [file.name for file in tmp_path.iterdir()] == ["overlay-web.json"]


def test_a_save_that_fails_keeps_the_old_file(
    directory: StateDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory.save(STATE)

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SlimError, match=r"cannot write .*No space left"):
        directory.save(replace(STATE, peers=()))
    assert directory.load("web") == STATE
    assert [file.name for file in tmp_path.iterdir()] == ["overlay-web.json"]


def test_an_unknown_overlay_is_refused_with_those_there_are(directory: StateDirectory) -> None:
    directory.save(STATE)
    assert directory.find("db") is None
    with pytest.raises(SlimError, match="there is no overlay 'db'") as refusal:
        directory.load("db")
    assert refusal.value.hint.endswith("there is: web")


def test_a_directory_that_is_not_there_holds_nothing(tmp_path: Path) -> None:
    assert StateDirectory(tmp_path / "none").names() == []
    assert StateDirectory(tmp_path / "none").find("web") is None


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"underlay": "host1"},
        {"vni": "42"},
        {"peers": [1]},
        {"segments": [{"network": "10.77.0.0/16"}]},
        {"segments": [{"network": "10.77.0.1/16", "subnet": "10.77.1.0/24"}]},
        {"unknown": 1},
        {"name": "other"},
    ],
)
def test_a_file_that_is_not_ours_is_refused(
    directory: StateDirectory, tmp_path: Path, change: dict[str, object]
) -> None:
    text = json.loads(encode(STATE)) | change
    (tmp_path / "overlay-web.json").write_text(json.dumps(text))
    with pytest.raises(ConfigError, match=r"overlay-web\.json"):
        directory.load("web")


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b"\xff", b" " * ((1 << 24) + 1)])
def test_what_is_no_state_at_all_is_refused(
    directory: StateDirectory, tmp_path: Path, data: bytes
) -> None:
    (tmp_path / "overlay-web.json").write_bytes(data)
    with pytest.raises(ConfigError):
        directory.load("web")


def test_the_file_is_readable() -> None:
    assert decode(encode(STATE)) == STATE
    assert encode(STATE).count(b"\n") > 10


def test_one_thread_has_the_lock_at_a_time(
    directory: StateDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state_module, "LOCK_LIMIT_S", 0.05)
    refusals: list[SlimError] = []

    def want() -> None:
        try:
            with directory.lock():
                pass
        except ControlError as error:
            refusals.append(error)

    with directory.lock():
        thread = threading.Thread(target=want)
        thread.start()
        thread.join()
    want()
    assert len(refusals) == 1
    assert "another command has held the lock" in refusals[0].message


def test_a_name_that_is_a_path_is_refused(directory: StateDirectory) -> None:
    with pytest.raises(ConfigError, match="is not a name"):
        directory.find("../web")
