"""slimctl policy apply, remove, show and list of the directory that a slimd has in force."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from slim.broker.admin import messages
from slim.broker.cli.main import main, slimctl
from slim.broker.errors import ControlError
from support.fake_admin import FakeProvider, container, serving, status

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from click.testing import Result

WEB = """\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: shop}
spec: {podSelector: {matchLabels: {app: web}}}
"""
ANYBODY = (
    WEB
    + "  # everybody\n---\n"
    + WEB.replace("name: web", "name: more").replace("}}}", "}}, ingress: [{}]}")
)
BROKEN = WEB.replace("app: web", "app: -web-")
CONFIG = """\
guard = "portable"
[host]
name = "a"
addresses = ["192.0.2.1"]
[[overlay]]
name = "blue"
networks = ["10.1.0.0/16"]
"""


@dataclass
class Host:
    """A directory of policies, a fake slimd that has it in force, and slimctl."""

    root: Path
    provider: FakeProvider = field(default_factory=FakeProvider)

    def __post_init__(self) -> None:
        self.directory.mkdir()
        self.configure(f'[plugins.networkpolicy]\npath = "{self.directory}"\n')
        self.provider.status_answer = status(config=str(self.root / "slimd.toml"))
        self.provider.container_rows = [
            container(workload="web", labels={"app": "web"}, addresses=["10.1.0.2"]),
            container(workload="db", labels={"app": "db"}, addresses=["10.1.0.3"]),
        ]

    @property
    def directory(self) -> Path:
        return self.root / "policies"

    def configure(self, plugins: str) -> None:
        (self.root / "slimd.toml").write_text(CONFIG + plugins)

    def files(self) -> dict[str, str]:
        return {each.name: each.read_text() for each in self.directory.iterdir()}

    def given(self, text: str, name: str = "web.yaml") -> Path:
        path = self.root / name
        path.write_text(text)
        return path

    def policy(self, *words: object, stdin: str = "") -> Result:
        arguments = ["--run-dir", str(self.root), "policy", *map(str, words)]
        return CliRunner().invoke(slimctl, arguments, input=stdin)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    host = Host(tmp_path)
    with serving(tmp_path, host.provider):
        yield host


def test_apply_shows_what_changes_and_asks(host: Host) -> None:
    said = host.policy("apply", host.given(WEB), stdin="y\n")
    assert said.exit_code == 0
    assert said.stdout == (
        "shop/db 10.1.0.3 to shop/web 10.1.0.2, ports 1 to 65535:\n"
        "  - allowed: no policy selects them\n"
        "  + denied: deny (networkpolicy:shop/web no ingress rule allows it)\n"
        f"{host.directory}/web.yaml is in force\n"
    )
    assert f"Put in force {host.directory}/web.yaml? [y/N]: y" in said.stderr
    assert host.files() == {"web.yaml": WEB}
    assert (host.directory / "web.yaml").stat().st_mode & 0o777 == 0o644


def test_apply_that_is_not_confirmed_changes_nothing(host: Host) -> None:
    said = host.policy("apply", host.given(WEB), stdin="n\n")
    assert said.exit_code == 1
    assert host.files() == {}


def test_a_dry_run_shows_the_change_and_makes_none(host: Host) -> None:
    said = host.policy("apply", "--dry-run", host.given(WEB))
    assert (said.exit_code, host.files()) == (0, {})
    assert "shop/db 10.1.0.3 to shop/web 10.1.0.2" in said.stdout


def test_standard_input_needs_a_name(host: Host) -> None:
    said = host.policy("apply", "-", "--yes", stdin=WEB)
    assert said.exit_code == 2
    assert "--name" in said.stderr
    assert host.policy("apply", "-", "--yes", "--name", "x.yml", stdin=WEB).exit_code == 0
    assert host.files() == {"x.yml": WEB}


def test_a_file_is_replaced_with_its_mode_kept(host: Host) -> None:
    (host.directory / "web.yaml").write_text(WEB)
    (host.directory / "web.yaml").chmod(0o600)
    said = host.policy("apply", "--yes", host.given(ANYBODY))
    assert said.exit_code == 0
    assert host.files() == {"web.yaml": ANYBODY}
    assert (host.directory / "web.yaml").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("text", "message"),
    [(BROKEN, "web.yaml:4: document 1, NetworkPolicy shop/web"), (WEB, "shop/web is also in")],
    ids=["mistake", "twice"],
)
def test_with_a_mistake_nothing_is_changed(host: Host, text: str, message: str) -> None:
    (host.directory / "other.yaml").write_text(WEB)
    said = host.policy("apply", "--yes", host.given(text))
    assert said.exit_code == 2
    assert message in said.stderr
    assert host.files() == {"other.yaml": WEB}


@pytest.mark.parametrize("before", [{}, {"web.yaml": WEB}], ids=["new", "replaced"])
def test_what_slimd_refuses_is_taken_back(
    host: Host, before: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    for name, text in before.items():
        (host.directory / name).write_text(text)
    host.provider.reloaded = messages.Reloaded([messages.Mistake("no\x1b", "yes")], [])
    arguments = ["--run-dir", str(host.root), "policy", "apply", "--yes"]
    with pytest.raises(SystemExit) as end:
        main([*arguments, str(host.given(ANYBODY))])
    assert end.value.code == 2
    assert capsys.readouterr().err == "slimctl: no\\x1b\n  hint: yes\n"
    assert host.files() == before


def test_a_slimd_that_gives_no_answer_may_have_read_it(host: Host) -> None:
    host.provider.reload_error = ControlError("no answer")
    said = host.policy("apply", "--yes", host.given(WEB))
    assert said.exit_code == 1
    assert isinstance(said.exception, ControlError)
    assert "slimd may have read it meanwhile: say slimctl reload" in said.stderr
    assert host.files() == {}


def refusal(host: Host, *words: object) -> str:
    said = host.policy(*words)
    assert said.exit_code == 1
    return str(said.exception)


@pytest.mark.parametrize("name", ["web.txt", ".web.yaml", "../web.yaml", "a\nb.yaml", ".yaml"])
def test_names_that_would_not_be_read_are_refused(host: Host, name: str) -> None:
    wrong = refusal(host, "apply", "--yes", host.given(WEB), "--name", name)
    assert "would not be read" in wrong
    assert host.files() == {}


def test_a_link_is_not_replaced(host: Host) -> None:
    (host.directory / "web.yaml").symlink_to(host.given(WEB, "elsewhere.yaml"))
    wrong = refusal(host, "apply", "--yes", host.given(ANYBODY))
    assert "is a symbolic link" in wrong
    assert (host.directory / "web.yaml").is_symlink()


def test_without_a_directory_there_is_nothing_to_change(host: Host) -> None:
    host.configure("")
    assert "no documents are in force" in refusal(host, "apply", host.given(WEB))
    host.configure(f'[plugins.networkpolicy]\npath = "{host.given(WEB)}"\n')
    assert "is no directory" in refusal(host, "remove", "web.yaml")


def test_remove(host: Host) -> None:
    (host.directory / "web.yaml").write_text(WEB)
    said = host.policy("remove", "web.yaml", stdin="y\n")
    assert said.exit_code == 0
    assert "shop/db 10.1.0.3 to shop/web 10.1.0.2" in said.stdout
    assert said.stdout.endswith(f"{host.directory}/web.yaml is out of force\n")
    assert host.files() == {}
    assert "has no web.yaml" in refusal(host, "remove", "web.yaml")


def test_show_tells_whom_a_policy_selects_and_its_text(host: Host) -> None:
    (host.directory / "web.yaml").write_text(ANYBODY)
    said = host.policy("show", "shop/web")
    assert said.exit_code == 0
    assert said.stdout == (
        f"NetworkPolicy shop/web ({host.directory}/web.yaml:1)\n"
        "  ingress: 0 rules\n"
        "  selects here: shop/web\n\n"
        f"{WEB}  # everybody\n"
    )
    assert f"{host.directory}/web.yaml:7)" in host.policy("show", "shop/more").stdout
    assert "no policy shop/none" in refusal(host, "show", "shop/none")


def test_list_of_what_is_in_force(host: Host) -> None:
    (host.directory / "web.yaml").write_text(WEB)
    said = host.policy("list")
    assert said.output == f"NetworkPolicy shop/web: ingress ({host.directory}/web.yaml:1)\n"
