"""A small valid configuration for tests, in parts that a test can leave out or replace."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from slim.broker.config import BrokerConfig, load_config
from slim.broker.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

GUARD = 'guard = "portable"\n'
HOST = '[host]\nname = "a"\naddresses = ["192.0.2.1", "2001:db8::1"]\n'
OVERLAY = '[[overlay]]\nname = "blue"\nnetworks = ["10.1.0.0/16"]\n'
PEERS = """\
[peers]
listen = "192.0.2.1:7946"
certificate = "host.crt"
key = "host.key"
authority = "authority.crt"
"""
PEER_FILES = ("host.crt", "host.key", "authority.crt")


def config_text(
    *more: str, top: str = "", guard: str = GUARD, host: str = HOST, overlay: str = OVERLAY
) -> str:
    """The text of a configuration: `top` stands above all tables, `more` behind them."""
    return "\n".join((guard, top, host, overlay, *more))


def load_text(directory: Path, text: str | bytes) -> BrokerConfig:
    """Load a configuration file of that content, beside which the files of PEERS are."""
    for name in PEER_FILES:
        (directory / name).touch()
    path = directory / "slimd.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_config(path)


def mistake_in(directory: Path, text: str | bytes) -> tuple[str, str]:
    """The one error that the text is refused with: its message behind the file's name, its hint."""
    with pytest.raises(ConfigError) as caught:
        load_text(directory, text)
    place, _, message = caught.value.message.partition(": ")
    assert place == str(directory / "slimd.toml")
    assert "\n" not in message
    assert caught.value.hint
    return message, caught.value.hint
