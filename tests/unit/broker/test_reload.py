"""What is checked before a reload, what is told, and what keeps its running value."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import pytest

from slim.broker import reload
from slim.broker.keeper_start import make_settings
from slim.broker.reload import Prepared, prepare
from support.configuration import PEERS, config_text, load_text
from support.peering import Authority

if TYPE_CHECKING:
    from pathlib import Path

    from slim.broker.config import BrokerConfig

HOST_NAME = "a"


@pytest.fixture(autouse=True)
def any_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """The addresses and ports of the test's configuration are those of no machine."""
    monkeypatch.setattr(reload, "check_host_addresses", lambda config: None)
    monkeypatch.setattr(reload, "check_host_ports", lambda config: None)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def running(tmp_path: Path, authority: Authority) -> BrokerConfig:
    """The configuration in force, with real certificates beside it."""
    config = load_text(tmp_path, config_text(PEERS))
    issue(authority, tmp_path, HOST_NAME)
    return config


def issue(authority: Authority, directory: Path, host: str) -> None:
    certificate, key = authority.issue(host)
    for file, name in ((certificate, "host.crt"), (key, "host.key")):
        (directory / name).write_bytes(file.read_bytes())
        (directory / name).chmod(0o600)
    (directory / "authority.crt").write_bytes(authority.certificate.read_bytes())


def write(running: BrokerConfig, text: str) -> None:
    running.path.write_text(text)


def prepared(running: BrokerConfig) -> Prepared:
    found = prepare(running.path, running, HOST_NAME)
    assert isinstance(found, Prepared), found
    return found


def mistakes(running: BrokerConfig) -> list[str]:
    found = prepare(running.path, running, HOST_NAME)
    assert not isinstance(found, Prepared)
    assert all(mistake.hint for mistake in found)
    return [mistake.message for mistake in found]


def test_the_same_file_is_good_and_its_plugins_are_new(running: BrokerConfig) -> None:
    first, second = prepared(running), prepared(running)
    assert first.config == running
    assert first.needs_restart == []
    assert first.plugins is not second.plugins
    assert first.credentials is not None
    assert first.client_tls is not None


def test_a_file_that_cannot_be_parsed_is_the_one_mistake(running: BrokerConfig) -> None:
    write(running, "guard =")
    (message,) = mistakes(running)
    assert str(running.path) in message


def test_certificate_and_plugins_are_told_at_once(running: BrokerConfig) -> None:
    write(running, config_text(PEERS, "[plugins.rules]\ndefault = 1\n"))
    running.path.with_name("host.key").write_text("no key\n")
    first, second = mistakes(running)
    assert "host.key" in first
    assert "[plugins.rules]" in second


def test_a_certificate_of_another_host_is_a_mistake(
    running: BrokerConfig, authority: Authority
) -> None:
    issue(authority, running.path.parent, "b")
    (message,) = mistakes(running)
    assert "certificate of 'b'" in message


def test_the_cipher_in_use_cannot_be_blocked(running: BrokerConfig) -> None:
    write(running, config_text(PEERS, '[plugins]\nblock = ["aesgcm"]\n'))
    (message,) = mistakes(running)
    assert "aesgcm" in message


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ('"192.0.2.1", ', "", "[host] addresses"),
        ('name = "a"', 'name = "aa"', "[host] name"),
        ("192.0.2.1:7946", "192.0.2.1:7947", "[peers] listen"),
        ('guard = "portable"', 'guard = "portable"\nrun_dir = "/run/other"', "run_dir"),
    ],
)
def test_what_cannot_change_is_named_and_keeps_its_value(
    running: BrokerConfig, old: str, new: str, key: str
) -> None:
    text = config_text(PEERS, '[policy]\nerrno = "EPERM"\n')
    if "addresses" in key:
        text = text.replace('listen = "192.0.2.1', 'listen = "0.0.0.0')
    assert old in text
    write(running, text.replace(old, new))
    found = prepared(running)
    assert key in found.needs_restart
    changed = dataclasses.replace(running, policy=found.config.policy)
    assert found.config == changed
    assert changed.policy != running.policy


def test_the_control_channel_neither_comes_nor_goes_while_running(running: BrokerConfig) -> None:
    write(running, config_text())
    found = prepared(running)
    assert found.needs_restart == ["[peers] listen"]
    assert found.config.peers == running.peers


def test_traps_hears_of_limits_errno_and_log_level(running: BrokerConfig) -> None:
    write(
        running,
        config_text(
            PEERS,
            '[limits]\nflow_lifetime_s = 77\n[policy]\nerrno = "EPERM"\n[log]\nlevel = "debug"\n',
        ),
    )
    settings = make_settings(prepared(running).config, "module")
    assert (settings.flow_lifetime_s, settings.deny_errno, settings.log_level) == (77, 1, "debug")
