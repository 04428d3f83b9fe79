"""What the neighbours backend makes of what the tables say; the tables are tests/kernel's."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from slim.broker.plugin_api import (
    Address,
    ConfigError,
    Endpoint,
    Located,
    PluginSettings,
    parse_address,
)
from slim.plugins.discovery import neighbours
from support.lending import LoopbackContext

if TYPE_CHECKING:
    from collections.abc import Callable

    from slim.broker.plugin_api import DiscoveryBackend

DESTINATION = parse_address("10.42.2.7")
CONTROL = Endpoint.parse("192.0.2.1:7946")


def backend(settings: dict[str, object], control: Endpoint | None = CONTROL) -> DiscoveryBackend:
    plugin = neighbours.Plugin()
    tables: dict[str, Any] = {"neighbours": settings}
    plugin.slim_configure(PluginSettings(host="a", source="slimd.toml", tables=tables))
    (found,) = plugin.slim_discovery_backends(LoopbackContext(control=control))
    return found


def ask(found: DiscoveryBackend) -> Located | None:
    return asyncio.run(found.locate(1, DESTINATION))


@pytest.fixture
def say(monkeypatch: pytest.MonkeyPatch) -> Callable[[str | OSError | None], None]:
    def say(remote: str | OSError | None) -> None:
        def remote_of(destination: Address) -> Address | None:
            assert destination == DESTINATION
            if isinstance(remote, OSError):
                raise remote
            return None if remote is None else parse_address(remote)

        monkeypatch.setattr(neighbours, "remote_of", remote_of)

    return say


@pytest.mark.parametrize(("settings", "port"), [({}, 7946), ({"control_port": 7000}, 7000)])
def test_the_host_is_asked_at_our_own_port_or_at_the_configured_one(
    say: Callable[[str], None], settings: dict[str, object], port: int
) -> None:
    say("192.0.2.2")
    expected = Located(None, Endpoint(parse_address("192.0.2.2"), port), neighbours.LIFETIME_S)
    assert ask(backend(settings)) == expected


@pytest.mark.parametrize("remote", [None, "0.0.0.0", "::", "239.1.1.1", "ff05::1"])
def test_what_names_no_host_is_no_opinion(
    say: Callable[[str | None], None], remote: str | None
) -> None:
    say(remote)
    assert ask(backend({})) is None


def test_tables_that_cannot_be_read_are_told_and_no_opinion(
    say: Callable[[OSError], None], caplog: pytest.LogCaptureFixture
) -> None:
    say(OSError(1, "Operation not permitted"))
    assert ask(backend({})) is None
    assert "the way to 10.42.2.7 is not known" in caplog.text


def test_without_a_control_channel_there_is_nobody_to_ask(say: Callable[[str], None]) -> None:
    say("192.0.2.2")
    assert ask(backend({}, control=None)) is None


@pytest.mark.parametrize("port", [0, 65536, "7946"])
def test_a_port_that_is_none_is_refused(port: object) -> None:
    with pytest.raises(ConfigError, match="control_port"):
        backend({"control_port": port})
