"""contrib/examples/quarantine: installed as a stranger would, and seen deciding."""

from __future__ import annotations

import subprocess
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "contrib" / "examples" / "quarantine"
ASK = """
from ipaddress import ip_address
from slim.broker.plugin_api import Direction, FlowRequest, Identity
from slim.broker.plugin_manager import Plugins
from slim.broker.plugin_settings import PluginSettings
import slim_quarantine, sys
plugins = Plugins()
plugins.configure(PluginSettings(host="a", source="slimd.toml", tables={TABLES}))
def decide(source, destination):
    verdict = plugins.decide(FlowRequest(
        direction=Direction.INGRESS,
        source=Identity("web", "shop", source), source_address=ip_address("10.77.1.2"),
        destination=Identity("db", "shop", destination),
        destination_address=ip_address("10.77.2.2"),
        port=5432))
    print(verdict.allow, verdict.rule)
decide({}, {})
decide({"bad": ""}, {})
decide({}, {"bad": ""})
print(plugins.isolates(Identity("web", "shop", {"bad": ""}), Direction.EGRESS))
print([entry for entry in plugins.describe() if entry[0] == "quarantine"][0][1])
print(slim_quarantine.__file__.startswith(sys.prefix))
"""


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with Slim, the example and what they need, nothing else."""
    directory = tmp_path_factory.mktemp("clean")
    venv.create(directory, with_pip=True)
    python = directory / "bin" / "python"
    subprocess.run(
        [python, "-m", "pip", "install", "--quiet", ROOT, EXAMPLE],
        check=True,
        timeout=300,
        cwd=directory,
    )
    return python


def ask(python: Path, tables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [python, "-P", "-c", ASK.replace("{TABLES}", tables)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        cwd=python.parent,
    )


def test_the_installed_plugin_decides(clean: Path) -> None:
    done = ask(clean, '{"quarantine": {"label": "bad"}}')
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "True default",
        "False quarantine:source",
        "False quarantine:destination",
        "True",
        "1.0",
        "True",
    ]


def test_its_mistakes_are_told_as_any_plugins(clean: Path) -> None:
    done = ask(clean, '{"quarantine": {"labels": ["bad"]}}')
    assert done.returncode != 0
    assert "[plugins.quarantine]" in done.stderr
    assert "labels" in done.stderr
