"""The example in contrib is what the types say, and it works."""

from __future__ import annotations

import re
import socket
from pathlib import Path

import pytest

from slim.broker.config_example import render_example
from slim.broker.config_keys import keys_of
from slim.broker.config_tables import ConfigTables
from slim.broker.endpoints import Endpoint
from support.configuration import load_text

EXAMPLE = Path(__file__).parents[3] / "contrib" / "examples" / "slimd.toml"


@pytest.fixture(autouse=True)
def _usable_machine_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "node-1")


def uncommented() -> str:
    """The example with every key written."""
    return re.sub(r"(?m)^#(?=\S)", "", render_example())


def test_the_example_file_is_rendered_from_the_types() -> None:
    assert EXAMPLE.read_text() == render_example(), (
        "run: python -m slim.broker.config_example > contrib/examples/slimd.toml"
    )


def test_the_example_is_valid_as_it_is(tmp_path: Path) -> None:
    config = load_text(tmp_path, render_example())
    assert config.guard == "portable"
    assert config.peers is None


def test_the_example_shows_the_defaults(tmp_path: Path) -> None:
    """Writing every key of a table that may be empty changes nothing."""
    plain = load_text(tmp_path, render_example())
    (tmp_path / "pki").mkdir()
    for name in ("host.crt", "host.key", "authority.crt"):
        (tmp_path / "pki" / name).touch()
    full = load_text(tmp_path, uncommented())
    for field in ("run_dir", "discovery", "policy", "limits", "plugins", "log"):
        assert getattr(full, field) == getattr(plain, field)
    assert full.host.ports == plain.host.ports
    assert full.slim_run.group == plain.slim_run.group


def test_the_example_is_valid_with_every_key_written(tmp_path: Path) -> None:
    (tmp_path / "pki").mkdir()
    for name in ("host.crt", "host.key", "authority.crt"):
        (tmp_path / "pki" / name).touch()
    config = load_text(tmp_path, uncommented())
    assert config.host.name == "node-1"
    assert config.peers is not None
    assert config.peers.listen == Endpoint.parse("192.0.2.11:7946")
    assert config.overlays[0].unverified == "deny"
    assert config.slim_run.namespaces[0].labels == {"app": "web", "tier": "front"}
    assert config.plugin_settings == {"static": {}}


def test_each_optional_key_can_be_taken_into_use_alone(tmp_path: Path) -> None:
    """Its table is there already, unless that has keys that must be written with it."""
    text = render_example()
    alone = [
        found
        for found in re.finditer(r"(?m)^#(?=[a-z_]+ = )", text)
        if text.rfind("\n[", 0, found.start()) > text.rfind("\n#[", 0, found.start())
    ]
    assert len(alone) >= 14
    for found in alone:
        load_text(tmp_path, text[: found.start()] + text[found.end() :])


def test_no_line_is_wider_than_a_page() -> None:
    assert max(len(line) for line in render_example().splitlines()) <= 100


@pytest.mark.parametrize("name", keys_of(ConfigTables))
def test_every_key_is_in_the_example_with_its_comment(name: str) -> None:
    key = keys_of(ConfigTables)[name]
    words = " ".join(line.removeprefix("# ") for line in render_example().splitlines())
    inner = [key] if key.table is None else [*keys_of(key.table).values()]
    for one in inner:
        if one.table is None:
            assert one.description
            assert one.description in words
            assert one.line in words
