"""The units of contrib/systemd: systemd understands them, and they fit slimd."""

from __future__ import annotations

import configparser
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from slim.broker.oci import agent, listener
from slim.broker.run.options import DEFAULT_RUN_DIR

UNITS = Path(__file__).parents[2] / "contrib" / "systemd"
BIN = Path(sys.executable).parent


def section(unit: str, name: str) -> dict[str, str]:
    parser = configparser.ConfigParser(interpolation=None, strict=True)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(UNITS / unit)
    return dict(parser[name])


@pytest.mark.needs_program("systemd-analyze")
def test_systemd_has_nothing_to_say_against_them(tmp_path: Path) -> None:
    for unit in UNITS.iterdir():
        shutil.copy(unit, tmp_path)
    service = tmp_path / "slimd.service"
    service.write_text(service.read_text().replace("=/usr/bin/slim", f"={BIN}/slim"))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(service), str(tmp_path / "slimd-oci.socket")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    ours = [line for line in done.stderr.splitlines() if "slimd" in line]
    assert (done.returncode, ours) == (0, [])


def test_the_socket_is_where_the_agent_looks_for_it() -> None:
    socket = section("slimd-oci.socket", "Socket")
    assert socket["ListenStream"] == f"{DEFAULT_RUN_DIR}/{agent.SOCKET}"
    assert socket["FileDescriptorName"] == listener.ACTIVATED
    assert socket["SocketMode"] == "0600"
    assert int(socket["Backlog"]) == listener.BACKLOG
    assert f"/run/{section('slimd.service', 'Service')['RuntimeDirectory']}" == DEFAULT_RUN_DIR
