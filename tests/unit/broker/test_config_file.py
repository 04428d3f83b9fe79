"""What is wrong with the file itself, its keys and its types, is one ConfigError each."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import pytest

from slim.broker.config import load_config
from slim.broker.config_file import MAX_BYTES
from slim.broker.errors import ConfigError
from support.configuration import GUARD, HOST, OVERLAY, PEERS, config_text, load_text, mistake_in

if TYPE_CHECKING:
    from pathlib import Path

NAMESPACE = '[[slim_run.namespace]]\nnetns = "web"\nworkload = "web-1"\n'


def mistake(path: Path) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert "\n" not in caught.value.message
    assert caught.value.hint
    return caught.value


# --- the file ---------------------------------------------------------------------------------


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "no.toml"
    error = mistake(path)
    assert error.message == f"{path}: cannot read the configuration: No such file or directory"
    assert error.exit_code == 2


def test_a_directory_is_refused(tmp_path: Path) -> None:
    error = mistake(tmp_path)
    assert error.message == f"{tmp_path}: cannot read the configuration: Is a directory"


def test_a_fifo_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "slimd.toml"
    os.mkfifo(path)
    error = mistake(path)
    assert error.message == f"{path}: cannot read the configuration: Not a regular file"


def test_a_socket_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("slimd.toml")
        error = mistake(tmp_path / "slimd.toml")
    assert "No such device or address" in error.message


def test_refused_files_are_not_kept_open(tmp_path: Path) -> None:
    before = os.listdir("/proc/self/fd")
    mistake(tmp_path)
    assert os.listdir("/proc/self/fd") == before


def test_a_relative_path_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load_text(tmp_path, config_text())
    monkeypatch.chdir(tmp_path)
    relative = (tmp_path / "slimd.toml").relative_to(tmp_path)
    assert load_config(relative).path == tmp_path / "slimd.toml"


def test_a_file_of_one_mebibyte_is_read(tmp_path: Path) -> None:
    text = config_text()
    padded = text + "#" * (MAX_BYTES - len(text))
    assert load_text(tmp_path, padded).host.name == "a"


def test_a_file_of_more_than_one_mebibyte_is_refused(tmp_path: Path) -> None:
    text = config_text()
    padded = text + "#" * (MAX_BYTES - len(text) + 1)
    assert mistake_in(tmp_path, padded)[0] == "larger than 1048576 bytes"


def test_a_file_that_is_not_utf8_is_refused_with_the_line(tmp_path: Path) -> None:
    message, hint = mistake_in(tmp_path, b'guard = "portable"\n# caf\xe9\n')
    assert message == "line 2 is not UTF-8"
    assert hint == "save it as UTF-8"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\n\nguard = portable\n", "line 3: not TOML: Invalid value"),
        ('guard = "portable"\nrun_dir = """\n', "line 3: not TOML: Unterminated string"),
        ("a = 1\na = 2\n", "line 2: not TOML: Cannot overwrite a value"),
        ("a = [1,\n", "line 2: not TOML: Invalid value"),
    ],
)
def test_a_syntax_error_is_named_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    told, hint = mistake_in(tmp_path, text)
    assert told == message
    assert "correct that line" in hint


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a = " + "[" * 20_000, "nested too deeply"),
        ("a = " + "9" * 5000, "a number has thousands of digits"),
    ],
)
def test_a_file_made_to_exhaust_the_parser_is_refused(
    tmp_path: Path, text: str, message: str
) -> None:
    assert mistake_in(tmp_path, text)[0] == message


# --- keys -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        (
            config_text(guard='gaurd = "portable"'),
            "gaurd: unknown key",
            "the nearest key is guard",
        ),
        (config_text("[lmits]\n"), "lmits: unknown key", "the nearest key is limits"),
        (
            config_text("[limits]\nresolve_budget = 20"),
            "[limits] resolve_budget: unknown key",
            "the nearest key is resolve_budget_ms",
        ),
        (
            config_text('networks_ = ["10.2.0.0/16"]'),
            "[[overlay]] number 1, networks_: unknown key",
            "the nearest key is networks",
        ),
        (
            config_text(NAMESPACE, NAMESPACE, "label = 1"),
            "[[slim_run.namespace]] number 2, label: unknown key",
            "the nearest key is labels",
        ),
        (
            config_text(PEERS, 'ca = "x"'),
            "[peers] ca: unknown key",
            "known keys: listen, certificate, key, authority",
        ),
        (
            config_text("[plugins]\nlaod = []"),
            "[plugins] laod: unknown key",
            "the nearest key is load",
        ),
        (
            config_text("[plugins]\nzz = 3"),
            "[plugins] zz: unknown key",
            "known keys: load, block; settings of a plugin go into a table [plugins.<name>]",
        ),
        (
            config_text('"a\\nb`" = 1'),
            "[[overlay]] number 1, 'a\\nb`': unknown key",
            "known keys: name, networks, unverified",
        ),
        (
            config_text("x" * 70 + " = 1"),
            f"[[overlay]] number 1, '{'x' * 57}...': unknown key",
            "known keys: name, networks, unverified",
        ),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest_known_one(
    tmp_path: Path, text: str, message: str, hint: str
) -> None:
    assert mistake_in(tmp_path, text) == (message, hint)


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        (
            HOST + GUARD + OVERLAY,
            "[host] guard: unknown key",
            "it belongs to the top of the file, above the first [table]",
        ),
        (
            config_text("[limits]\nlevel = 1"),
            "[limits] level: unknown key",
            "it belongs into [log]",
        ),
        (
            config_text("[discovery.limits]"),
            "[discovery] limits: unknown key",
            "it belongs into a table of its own, [limits]",
        ),
        (
            config_text("[slim_run]\nlabels = {}"),
            "[slim_run] labels: unknown key",
            "it belongs into [[slim_run.namespace]] or into [[shaping.rule]] or into "
            "[[shaping.container]]",
        ),
        (
            config_text("[log]\nnetns = 1"),
            "[log] netns: unknown key",
            "it belongs into [[slim_run.namespace]]",
        ),
    ],
)
def test_a_key_of_another_table_is_sent_there(
    tmp_path: Path, text: str, message: str, hint: str
) -> None:
    assert mistake_in(tmp_path, text) == (message, hint)


@pytest.mark.parametrize(
    ("text", "message", "in_hint"),
    [
        (config_text(host=""), "[host]: is missing", 'addresses = ["192.0.2.11"]'),
        (config_text(host="[host]"), "[host] addresses: is missing", "Example: addresses = ["),
        (config_text(overlay=""), "[[overlay]]: is missing", 'name = "blue"; networks = ['),
        (
            config_text(OVERLAY.replace("blue", "red"), overlay='[[overlay]]\nname = "b"'),
            "[[overlay]] number 1, networks: is missing",
            "Example: networks = [",
        ),
        (
            config_text('[[overlay]]\nnetworks = ["10.2.0.0/16"]'),
            "[[overlay]] number 2, name: is missing",
            'Example: name = "blue"',
        ),
        (config_text("[peers]"), "[peers] listen: is missing", 'listen = "192.0.2.11:7946"'),
        (
            config_text(PEERS.replace("key = ", "#")),
            "[peers] key: is missing",
            'Example: key = "pki/host.key"',
        ),
        (
            config_text('[[slim_run.namespace]]\nnetns = "web"'),
            "[[slim_run.namespace]] number 1, workload: is missing",
            'Example: workload = "web-1"',
        ),
    ],
)
def test_a_missing_key_is_explained(tmp_path: Path, text: str, message: str, in_hint: str) -> None:
    told, hint = mistake_in(tmp_path, text)
    assert told == message
    assert in_hint in hint


def test_a_missing_guard_is_answered_with_what_a_guard_means(tmp_path: Path) -> None:
    message, hint = mistake_in(tmp_path, config_text(guard=""))
    assert message == "guard: is missing"
    assert '"portable": seccomp only, for programs that you trust' in hint
    assert "no security boundary" in hint
    assert '"kernel": BPF' in hint
    assert "does not start where they cannot run" in hint
    assert hint.endswith('Example: guard = "portable"')


# --- types ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (config_text(guard="guard = true"), "guard: must be a string, not true or false"),
        (config_text(top="run_dir = 3"), "run_dir: must be a string, not an integer"),
        (config_text(host="[host]\nname = 1.5\naddresses = []"), "[host] name: must be a string, "),
        (
            config_text(host='[host]\naddresses = "192.0.2.1"'),
            "[host] addresses: must be a list, not a string",
        ),
        (
            config_text(host='[host]\naddresses = ["192.0.2.1", 5]'),
            "[host] addresses: every entry must be a string, not an integer",
        ),
        (
            config_text("[limits]\nflow_lifetime_s = 300.0"),
            "[limits] flow_lifetime_s: must be an integer, not a number with a fraction",
        ),
        (
            config_text("[limits]\nflow_lifetime_s = 1979-05-27"),
            "[limits] flow_lifetime_s: must be an integer, not date",
        ),
        (
            config_text("[limits]\nflow_lifetime_s = true"),
            "[limits] flow_lifetime_s: must be an integer, not true or false",
        ),
        (
            config_text(NAMESPACE, "labels = {a = 1}"),
            "[[slim_run.namespace]] number 1, labels: every entry must be a string, not an integer",
        ),
        (config_text(NAMESPACE, "labels = []"), "labels: must be a table, not a list"),
        (config_text("[plugins.load]"), "[plugins] load: must be a list, not a table"),
        (config_text(top="plugins = 3"), "[plugins]: must be a table, not an integer"),
        (config_text(top="overlay = [1]", overlay=""), "[[overlay]] number 1: must be a table, "),
    ],
)
def test_a_value_of_the_wrong_type_is_told_in_words_of_toml(
    tmp_path: Path, text: str, message: str
) -> None:
    told, hint = mistake_in(tmp_path, text)
    assert message in told
    assert hint


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        (
            config_text(overlay=OVERLAY.replace("[[", "[").replace("]]", "]")),
            "[[overlay]]: must be a list, not a table",
            "write [[overlay]], with two brackets on each side",
        ),
        (
            config_text("[slim_run.namespace]"),
            "[[slim_run.namespace]]: must be a list, not a table",
            "write [[slim_run.namespace]], with two brackets on each side",
        ),
        (
            config_text("[[limits]]"),
            "[limits]: must be a table, not a list",
            "write [limits], with one bracket on each side",
        ),
        (
            config_text("[[peers]]"),
            "[peers]: must be a table, not a list",
            "write [peers], with one bracket on each side",
        ),
    ],
)
def test_wrong_brackets_are_recognised(tmp_path: Path, text: str, message: str, hint: str) -> None:
    assert mistake_in(tmp_path, text) == (message, hint)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (config_text(guard='guard = "none"'), "guard: 'none' is not one of its values"),
        (
            config_text('unverified = "allow"'),
            "[[overlay]] number 1, unverified: 'allow' is not one of its values",
        ),
        (config_text('[policy]\nerrno = "EIO"'), "[policy] errno: 'EIO' is not one of its values"),
        (config_text("[policy]\nerrno = 13"), "[policy] errno: must be a string, not an integer"),
        (config_text('[log]\nlevel = "loud"'), "[log] level: 'loud' is not one of its values"),
        (config_text('[log]\nformat = "xml"'), "[log] format: 'xml' is not one of its values"),
        (
            config_text(f'[log]\nformat = "{"x" * 99}"'),
            f"[log] format: '{'x' * 57}...' is not one of its values",
        ),
    ],
)
def test_a_value_that_is_none_of_a_few_is_refused(tmp_path: Path, text: str, message: str) -> None:
    told, hint = mistake_in(tmp_path, text)
    assert told == message
    assert "Example: " in hint


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            config_text(host="[host]\naddresses = []"),
            "[host] addresses: must have at least 1 entry",
        ),
        (
            config_text(host=f"[host]\naddresses = {['192.0.2.1'] * 17}"),
            "[host] addresses: must have at most 16 entries",
        ),
        (config_text(top="overlay = []", overlay=""), "[[overlay]]: must have at least 1 entry"),
        (
            config_text(overlay='[[overlay]]\nname = "a"\nnetworks = []'),
            "[[overlay]] number 1, networks: must have at least 1 entry",
        ),
        (
            config_text("[discovery]\norder = []"),
            "[discovery] order: must have at least 1 entry",
        ),
        (
            config_text(NAMESPACE, "[slim_run.namespace.labels]", *(f"l{i}=''" for i in range(65))),
            "[[slim_run.namespace]] number 1, labels: must have at most 64 entries",
        ),
    ],
)
def test_too_few_and_too_many_entries_are_refused(tmp_path: Path, text: str, message: str) -> None:
    assert mistake_in(tmp_path, text)[0] == message


BORDERS = [
    ("limits", "resolve_budget_ms", 1, 1000),
    ("limits", "connect_budget_ms", 10, 60_000),
    ("limits", "flow_lifetime_s", 10, 3600),
    ("limits", "gap_limit_s", 0, 86_400),
    ("discovery", "rendezvous_port", 1, 65535),
]


@pytest.mark.parametrize(("table", "key", "least", "most"), BORDERS)
def test_numbers_are_accepted_up_to_their_borders(
    tmp_path: Path, table: str, key: str, least: int, most: int
) -> None:
    for value in (least, most):
        config = load_text(tmp_path, config_text(f"[{table}]\n{key} = {value}"))
        assert getattr(getattr(config, table), key) == value


@pytest.mark.parametrize(("table", "key", "least", "most"), BORDERS)
def test_numbers_beyond_their_borders_are_refused(
    tmp_path: Path, table: str, key: str, least: int, most: int
) -> None:
    for value, bound in (
        (least - 1, f"least {least}"),
        (most + 1, f"most {most}"),
        ("0x" + "f" * 6000, f"most {most}"),
    ):
        message, hint = mistake_in(tmp_path, config_text(f"[{table}]\n{key} = {value}"))
        assert message == f"[{table}] {key}: must be at {bound}"
        assert f"Example: {key} = " in hint


# --- plugins ----------------------------------------------------------------------------------


def test_tables_of_plugins_are_kept_as_they_are(tmp_path: Path) -> None:
    config = load_text(
        tmp_path,
        config_text(
            '[plugins]\nblock = ["etcd"]',
            '[plugins.static]\npeers = [{host = "b", port = 1}]',
            "[plugins.mine.deeper]\nx = true",
        ),
    )
    assert config.plugin_settings == {
        "static": {"peers": [{"host": "b", "port": 1}]},
        "mine": {"deeper": {"x": True}},
    }
    assert config.plugins.block == ("etcd",)
