"""ps, connections, status and plugins, against a real admin socket."""

from __future__ import annotations

import csv
import json
import re
from typing import TYPE_CHECKING

import msgspec
import pytest
from click.testing import CliRunner

from slim.broker.cli.main import slimctl as group
from support.fake_admin import FakeProvider, connection, container, listener, serving
from support.terminal import slimctl, slimctl_on_terminal

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# Rich would read :ab: in these as the name of an emoji.
LOCAL6, PEER6 = "[fd00:ab:0:1::2]:40000", "[fd00:ab:0:2::3]:11211"


@pytest.fixture
def provider() -> FakeProvider:
    return FakeProvider()


@pytest.fixture
def run_dir(tmp_path: Path, provider: FakeProvider) -> Iterator[Path]:
    with serving(tmp_path, provider) as directory:
        yield directory


def show(run_dir: Path, *words: str) -> list[str]:
    done = CliRunner().invoke(group, ["--run-dir", str(run_dir), *words])
    assert done.exit_code == 0, done.output
    return done.output.splitlines()


def cells(line: str) -> list[str]:
    """Of a piped listing: columns are two blanks apart or more."""
    return re.split(r"\s{2,}", line.strip())


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("ps", "containers"),
        ("connections", "connections"),
        ("listeners", "listeners"),
        ("status", "status"),
        ("plugins", "plugins"),
    ],
)
def test_json_has_the_version_and_the_whole_answer(
    run_dir: Path, provider: FakeProvider, command: str, name: str
) -> None:
    answers = {
        "ps": provider.container_rows,
        "connections": provider.connection_rows,
        "status": provider.status_answer,
        "plugins": provider.plugin_rows,
        "listeners": [],
    }
    done = slimctl("--run-dir", run_dir, command, "--json")
    assert json.loads(done.stdout) == {"version": 1, name: msgspec.to_builtins(answers[command])}


@pytest.mark.parametrize("command", ["ps", "connections", "plugins"])
def test_json_of_nothing_is_an_empty_list(
    run_dir: Path, provider: FakeProvider, command: str
) -> None:
    provider.container_rows, provider.connection_rows, provider.plugin_rows = [], [], []
    (name,) = {*json.loads("\n".join(show(run_dir, command, "--json")))} - {"version"}
    assert json.loads("\n".join(show(run_dir, command, "--json")))[name] == []
    assert len(show(run_dir, command)) == 1


def test_a_connection_in_full(run_dir: Path) -> None:
    title, line = show(run_dir, "connections")
    assert dict(zip(cells(title), cells(line), strict=True)) == {
        "DIR": "out",
        "WORKLOAD": "web",
        "PROCESS": "4711/nginx",
        "OVERLAY": "10.1.0.2:40000 -> 10.1.1.2:80",
        "HOST PEER": "192.0.2.2:20001",
        "PATH": "fast",
        "VERDICT": "allow rules:web",
        "LIMITS": "-",
        "RTT": "-",
        "RETR": "0",
        "SENT": "0",
        "RECEIVED": "0",
        "STATE": "established",
        "AGE": "5s",
    }


def test_the_reason_stands_beside_a_path_that_is_not_fast(
    run_dir: Path, provider: FakeProvider
) -> None:
    provider.connection_rows = [connection(path="fallback", reason="tfo-off")]
    assert "fallback (tfo-off)" in show(run_dir, "connections")[1]


def test_the_arrow_of_an_incoming_connection_points_here(
    run_dir: Path, provider: FakeProvider
) -> None:
    provider.connection_rows = [connection(direction="in")]
    assert "10.1.0.2:40000 <- 10.1.1.2:80" in show(run_dir, "connections")[1]


def test_a_listener_has_a_host_port_and_no_verdict(run_dir: Path, provider: FakeProvider) -> None:
    provider.connection_rows = [listener()]
    line = show(run_dir, "connections")[1]
    assert "0.0.0.0:80  192.0.2.1:20000" in line
    assert "allow" not in line


MIXED = [
    connection(workload="web", path="fallback", age_s=1),
    connection(workload="web", age_s=9),
    listener(workload="web"),
    connection(workload="db", path="denied", reason="policy", verdict="deny"),
    listener(workload="db"),
]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], ["db listen", "db out", "web listen", "web out", "web out"]),
        (["--all"], ["db listen", "db out", "web listen", "web out", "web out"]),
        (["--listeners"], ["db listen", "web listen"]),
        (["--no-listeners"], ["db out", "web out", "web out"]),
        (["--workload", "db"], ["db listen", "db out"]),
        (["--path", "denied"], ["db out"]),
        (["--path", "denied", "--path", "fallback"], ["db out", "web out"]),
        (["--path", "fast", "--workload", "web", "--no-listeners"], ["web out"]),
    ],
)
def test_filters_hold_together_and_each_may_be_repeated(
    run_dir: Path, provider: FakeProvider, words: list[str], expected: list[str]
) -> None:
    provider.connection_rows = MIXED
    lines = [line.split() for line in show(run_dir, "connections", *words)[1:]]
    assert [f"{line[1]} {line[0]}" for line in lines] == expected
    answer = json.loads("\n".join(show(run_dir, "connections", *words, "--json")))
    found = [f"{row['workload']} {row['direction']}" for row in answer["connections"]]
    assert sorted(found) == sorted(expected)


def test_the_oldest_connection_of_a_workload_comes_first(
    run_dir: Path, provider: FakeProvider
) -> None:
    provider.connection_rows = [connection(age_s=1), connection(age_s=100)]
    assert [line.split()[-1] for line in show(run_dir, "connections")[1:]] == ["1m40s", "1s"]


def test_a_filter_that_leaves_nothing_says_how_many_there_are(
    run_dir: Path, provider: FakeProvider
) -> None:
    provider.connection_rows = MIXED
    assert show(run_dir, "connections", "--workload", "x") == ["none of 5 matches"]


def test_a_container_in_full(run_dir: Path) -> None:
    title, line = show(run_dir, "ps")
    assert dict(zip(cells(title), cells(line), strict=True)) == {
        "CONTAINER": "0123456789ab",
        "WORKLOAD": "web",
        "NAMESPACE": "shop",
        "ADDRESSES": "10.1.0.2 fd00:ab::2",
        "PID": "4711",
        "COMMAND": "nginx -g 'daemon off;'",
        "AGE": "1h02m",
        "CONN": "5",
        "LISTEN": "1",
        "ISOLATED": "ingress",
        "LABELS": "app=web,tier=front",
    }


def test_a_long_command_is_whole_in_a_pipe(run_dir: Path, provider: FakeProvider) -> None:
    provider.container_rows = [container(command=["x" * 900])]
    assert "x" * 900 in show(run_dir, "ps")[1]


def test_plugins_and_their_hooks(run_dir: Path) -> None:
    shown = show(run_dir, "plugins")[1].split()
    assert shown == ["rules", "1.0", "2.0k", "11us", "4.2ms", "1", "decide"]


def test_status_names_processes_peers_and_counters(run_dir: Path) -> None:
    text = "\n".join(show(run_dir, "status"))
    assert "1.2.3 on host a, up 1m01s" in text
    assert "control 41, traps not running" in text
    assert "1 workloads, 2 containers, 3 listeners, 4 connections" in text
    assert re.search(r"^b +connected +0\.4 ms +- +192\.0\.2\.2:7946", text, re.MULTILINE)
    assert re.search(r"^\? +failed +- +7s +192\.0\.2\.3:7946 +Connection refused", text, re.M)
    assert re.search(r"^  lookups +17$", text, re.MULTILINE)


def test_status_calls_only_the_portable_guard_no_boundary(
    run_dir: Path, provider: FakeProvider
) -> None:
    assert any("no security boundary" in line for line in show(run_dir, "status"))
    provider.status_answer = msgspec.structs.replace(provider.status_answer, guard="kernel")
    assert not any("boundary" in line for line in show(run_dir, "status"))


def on_terminal(run_dir: Path, *words: str, columns: int) -> list[str]:
    text = slimctl_on_terminal("--run-dir", run_dir, *words, columns=columns)
    lines = [line.rstrip() for line in re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines()]
    assert max(map(len, lines)) <= columns
    return lines


@pytest.mark.parametrize("columns", [80, 120])
def test_rows_of_ipv4_fit_a_terminal(run_dir: Path, provider: FakeProvider, columns: int) -> None:
    provider.connection_rows = [
        connection(overlay_local="10.100.100.100:40000", overlay_peer="10.100.100.101:11211"),
        connection(path="fallback", reason="no-key"),
    ]
    lines = on_terminal(run_dir, "connections", columns=columns)
    assert len(lines) == 3
    assert "10.100.100.100:40000 -> 10.100.100.101:11211" in "".join(lines)
    assert "fallback (no-key)" in "".join(lines)


@pytest.mark.parametrize("columns", [80, 120])
def test_an_address_is_whole_on_one_line_even_where_a_row_takes_two(
    run_dir: Path, provider: FakeProvider, columns: int
) -> None:
    provider.connection_rows = [
        connection(overlay_local=LOCAL6, overlay_peer=PEER6, path="fallback", reason="no-key")
    ]
    lines = on_terminal(run_dir, "connections", columns=columns)
    for part in (LOCAL6, PEER6, "fallback (no-key)"):
        assert any(part in line for line in lines)


def test_limits_are_shown_where_there_is_room(run_dir: Path, provider: FakeProvider) -> None:
    limits = "send 200mbit, quota 5GiB"
    provider.connection_rows = [connection(limits=limits)]
    assert limits in "\n".join(show(run_dir, "connections", "-o", "wide"))
    assert limits not in "\n".join(on_terminal(run_dir, "connections", columns=120))
    (row,) = json.loads("\n".join(show(run_dir, "connections", "--json")))["connections"]
    assert row["limits"] == limits


def test_a_wide_terminal_shows_all_columns(run_dir: Path) -> None:
    wide = slimctl_on_terminal("--run-dir", run_dir, "connections", columns=200)
    narrow = slimctl_on_terminal("--run-dir", run_dir, "connections", columns=80)
    for title in ("PROCESS", "HOST PEER", "VERDICT"):
        assert title in wide
        assert title not in narrow


@pytest.mark.parametrize("columns", [80, 120])
def test_ps_shortens_the_command_before_it_leaves_columns_out(
    run_dir: Path, provider: FakeProvider, columns: int
) -> None:
    provider.container_rows = [container(addresses=["10.1.0.2"], command=["server", "x" * 300])]
    lines = on_terminal(run_dir, "ps", columns=columns)
    assert len(lines) == 2
    for part in ("10.1.0.2", "server", "..."):
        assert part in lines[1]


def test_an_address_is_never_shown_as_an_emoji(run_dir: Path, provider: FakeProvider) -> None:
    provider.container_rows = [container(addresses=["fd00:ab::2"])]
    assert "fd00:ab::2" in slimctl_on_terminal("--run-dir", run_dir, "ps", columns=160)


@pytest.mark.parametrize("environment", [{}, {"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_nothing_depends_on_colour(run_dir: Path, environment: dict[str, str]) -> None:
    shown = slimctl_on_terminal("--run-dir", run_dir, "connections", columns=80, **environment)
    assert set(re.findall(r"\x1b\[([0-9;]*)m", shown)) <= {"1", "0"}


def test_a_container_cannot_steer_the_operators_terminal(
    run_dir: Path, provider: FakeProvider
) -> None:
    provider.connection_rows = [connection(process="1/\x1b]0;owned\x07", workload="[red]w[/red]")]
    shown = slimctl_on_terminal("--run-dir", run_dir, "connections", columns=200)
    assert "\x1b]" not in shown
    assert "\\x1b]0;owned\\x07" in shown
    assert "[red]w[/red]" in shown


def test_a_pipe_has_no_escapes_even_if_colour_is_forced(run_dir: Path) -> None:
    assert "\x1b" not in slimctl("--run-dir", run_dir, "ps", FORCE_COLOR="1").stdout


@pytest.mark.parametrize(
    ("words", "lines"),
    [
        (["connections", "workload:web", "-path:fast"], ["none of 1 matches"]),
        (["connections", "workload:nobody"], ["none of 1 matches"]),
        (["ps", "-label:app=web"], ["none of 1 matches"]),
        (["ps", "-/front/"], ["none of 1 matches"]),
    ],
)
def test_a_filter_chooses_and_its_negation_is_no_option(
    tmp_path: Path, words: list[str], lines: list[str]
) -> None:
    rows = FakeProvider(connection_rows=[connection()], container_rows=[container()])
    with serving(tmp_path, rows) as directory:
        assert show(directory, *words) == lines
        assert len(show(directory, words[0], "web")) == 2


@pytest.mark.parametrize("command", ["ps", "connections", "plugins"])
def test_every_form_has_the_same_rows_and_fields(run_dir: Path, command: str) -> None:
    name = "containers" if command == "ps" else command
    (row,) = json.loads("".join(show(run_dir, command, "-o", "json")))[name]
    assert [json.loads(line) for line in show(run_dir, command, "-o", "jsonl")] == [row]
    (cell,) = csv.DictReader(show(run_dir, command, "-o", "csv"))
    assert cell == {
        key: json.dumps(value, separators=(",", ":"))
        if isinstance(value, list | dict)
        else str(value)
        for key, value in row.items()
    }
    assert show(run_dir, command, "-o", "wide") == show(run_dir, command)
