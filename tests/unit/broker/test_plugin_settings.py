"""How plugins read their tables, and what mistakes look like."""

from __future__ import annotations

import msgspec
import pytest

from slim.broker.errors import ConfigError
from slim.broker.plugin_settings import PluginSettings


class Peer(msgspec.Struct, forbid_unknown_fields=True):
    port: int


class Settings(msgspec.Struct, forbid_unknown_fields=True):
    peers: list[Peer] = []
    name: str = "none"


def settings(**tables: dict[str, object]) -> PluginSettings:
    return PluginSettings("a", "/etc/slim/slimd.toml", tables)


def test_a_table_is_read_as_the_plugins_own_type() -> None:
    read = settings(demo={"name": "x", "peers": [{"port": 5}]}).read("demo", Settings)
    assert (read.name, [peer.port for peer in read.peers]) == ("x", [5])


def test_without_a_table_the_defaults_are_read() -> None:
    assert settings(other={"name": "x"}).read("demo", Settings) == Settings()


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (
            {"peers": [{"port": "x"}]},
            "/etc/slim/slimd.toml: [plugins.demo] peers[0].port: Expected `int`, got `str`",
        ),
        (
            {"nmae": "x"},
            "/etc/slim/slimd.toml: [plugins.demo]: Object contains unknown field `nmae`",
        ),
        (
            {"peers": [{"port": 1}, {}]},
            "/etc/slim/slimd.toml: [plugins.demo] peers[1]: Object missing required field `port`",
        ),
    ],
)
def test_a_mistake_names_file_table_and_key(table: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        settings(demo=table).read("demo", Settings)
    assert str(caught.value) == message


def test_a_plugin_words_its_own_mistakes_the_same_way() -> None:
    error = settings().mistake("demo", "is odd", key="name", hint="make it even")
    assert isinstance(error, ConfigError)
    assert str(error) == "/etc/slim/slimd.toml: [plugins.demo] name: is odd"
    assert error.hint == "make it even"
