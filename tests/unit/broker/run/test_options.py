from __future__ import annotations

import pytest

from slim.broker.run.options import parse


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLIM_RUN_DIR", raising=False)


def test_defaults_are_closed_and_say_nothing_about_identity() -> None:
    options = parse(["--", "true"])
    assert options.command == ["true"]
    assert options.workload is None
    assert options.namespace == "default"
    assert options.labels == {}
    assert options.fail_open is False
    assert options.run_dir == "/run/slim"
    assert not options.wants_prepared_namespace


def test_all_options_are_read() -> None:
    options = parse(
        [
            "--workload",
            "web",
            "--namespace",
            "shop",
            "--label",
            "tier=front",
            "--label",
            "a=b=c",
            "--netns",
            "blue",
            "--overlay",
            "o",
            "--user",
            "www",
            "--fail-open",
            "--run-dir",
            "/r",
            "--",
            "nginx",
            "-g",
            "x",
        ]
    )
    assert options.workload == "web"
    assert options.namespace == "shop"
    assert options.labels == {"tier": "front", "a": "b=c"}
    assert options.netns == "blue"
    assert options.overlay == "o"
    assert options.user == "www"
    assert options.fail_open is True
    assert options.run_dir == "/r"
    assert options.command == ["nginx", "-g", "x"]
    assert not options.wants_prepared_namespace


@pytest.mark.parametrize(
    ("argv", "command"),
    [
        (["--", "env", "--", "x"], ["env", "--", "x"]),
        (["--workload", "w", "cmd", "--user", "u", "--help"], ["cmd", "--user", "u", "--help"]),
        (["--", "--odd"], ["--odd"]),
        (["cmd", "--", "x"], ["cmd", "--", "x"]),
        (["--", ""], [""]),
    ],
)
def test_everything_behind_the_options_is_the_commands_own(
    argv: list[str], command: list[str]
) -> None:
    options = parse(argv)
    assert options.command == command
    assert options.user is None


def test_run_dir_is_taken_from_the_environment_unless_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SLIM_RUN_DIR", "/elsewhere")
    assert parse(["true"]).run_dir == "/elsewhere"
    assert parse(["--run-dir", "/here", "true"]).run_dir == "/here"


@pytest.mark.parametrize("address", ["10.32.0.5", "fd00::5"])
def test_an_address_asks_slimd_for_a_namespace(address: str) -> None:
    options = parse(["--overlay", "o", "--ip", address, "true"])
    assert options.ip == address
    assert options.wants_prepared_namespace


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        ([], "no command"),
        (["--"], "no command"),
        (["--workload", "", "true"], "must not be empty"),
        (["--workload", "\udcff", "true"], "UTF-8"),
        (["--label", "plain", "true"], "key=value"),
        (["--label", "=x", "true"], "key=value"),
        (["--label", "a=1", "--label", "a=2", "true"], "given twice"),
        (["--overlay", "o", "--ip", "10.0.0.300", "true"], "not an IP address"),
        (["--overlay", "o", "--ip", "10.0.0.1/24", "true"], "not an IP address"),
        (["--ip", "10.0.0.3", "true"], "--overlay"),
        (["--overlay", "o", "--netns", "n", "--ip", "10.0.0.3", "true"], "--netns"),
        (["--fail-open", "--fail-closed", "true"], "not allowed with"),
        (["--work", "w", "true"], "--work"),
    ],
)
def test_mistakes_end_with_status_2_and_name_the_argument(
    argv: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(argv)
    assert ended.value.code == 2
    assert complaint in capsys.readouterr().err


def test_the_same_label_twice_is_no_contradiction() -> None:
    assert parse(["--label", "a=1", "--label", "a=1", "true"]).labels == {"a": "1"}
