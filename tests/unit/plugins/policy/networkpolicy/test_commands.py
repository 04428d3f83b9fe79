"""slimctl policy: documents are checked and asked without a slimd."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from slim.broker.cli.main import slimctl
from slim.plugins.policy.networkpolicy.asking import read_end

if TYPE_CHECKING:
    from pathlib import Path

    from click.testing import Result

DB = """\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db, namespace: shop}
spec:
  podSelector: {matchLabels: {app: db}}
  ingress:
  - from: [{podSelector: {matchLabels: {app: web}}}]
    ports: [{port: 5432}]
"""
WIDER = DB.replace("5432", "5432, endPort: 5440")
NAMED = DB.replace("5432", "sql")
WATCHED = DB.replace("namespace: shop", "namespace: shop, annotations: {policy.slim/mode: audit}")
BROKEN = DB.replace("app: web", "app: -web-")
CONTAINERS = {
    "version": 1,
    "containers": [
        {
            "workload": name,
            "namespace": "shop",
            "labels": {"app": name, **labels},
            "addresses": addresses,
            "pid": 1,
        }
        for name, labels, addresses in (
            ("web", {}, ["10.77.1.2", "fd77::2"]),
            ("db", {"port.slim/sql": "5432"}, ["10.77.2.2"]),
            ("db", {"port.slim/sql": "5432"}, ["10.77.2.2"]),
        )
    ],
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "db.yaml"
    path.write_text(DB)
    return path


def policy(*words: object, stdin: str = "") -> Result:
    return CliRunner().invoke(slimctl, ["policy", *map(str, words)], input=stdin)


def diff(tmp_path: Path, old: str, new: str, containers: str) -> Result:
    for name, text in (("old.yaml", old), ("new.yaml", new)):
        (tmp_path / name).write_text(text)
    where = tmp_path / "old.yaml", tmp_path / "new.yaml"
    return policy("diff", *where, "--containers", "-", stdin=containers)


# --- lint and list --------------------------------------------------------------------------------


def test_lint_counts_what_is_right(file: Path) -> None:
    said = policy("lint", file.parent)
    assert (said.exit_code, said.output) == (
        0,
        f"{file.parent}: 1 policies, 0 namespaces, no mistake\n",
    )


def test_lint_tells_every_mistake_with_its_place_and_remedy(file: Path) -> None:
    file.write_text(BROKEN + "---\nkind: NetworkPolicy\n")
    said = policy("lint", file)
    assert said.exit_code == 2
    assert f"{file}:7: document 1, NetworkPolicy shop/db: " in said.stderr
    assert f"{file}:10: document 2" in said.stderr
    assert said.stderr.count("hint: ") == 2
    assert said.stdout == ""


def test_list_names_what_each_policy_isolates(file: Path) -> None:
    file.write_text(WATCHED)
    assert policy("list", file).output == (
        f"NetworkPolicy shop/db: ingress, audit only ({file}:1)\n"
    )
    (row,) = json.loads(policy("list", file, "--json").output)["policies"]
    assert (row["name"], row["mode"], row["directions"]) == ("shop/db", "audit", ["ingress"])


def test_list_of_an_empty_directory_says_so(tmp_path: Path) -> None:
    assert policy("list", tmp_path).output == "no policy\n"


# --- test -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "port", "status", "ingress"),
    [
        ("shop/app=web", 5432, 0, "allow (networkpolicy:shop/db ingress[0])"),
        ("shop/app=web", 5433, 1, "deny (networkpolicy:shop/db no ingress rule allows it)"),
        ("other/app=web", 5432, 1, "deny (networkpolicy:shop/db no ingress rule allows it)"),
        ("10.9.9.9", 5432, 1, "deny (networkpolicy:shop/db no ingress rule allows it)"),
    ],
)
def test_test_names_the_rule_that_decides(
    file: Path, source: str, port: int, status: int, ingress: str
) -> None:
    said = policy("test", file, "--from", source, "--to", "shop/app=db", "--port", port)
    assert said.exit_code == status
    assert f"ingress: {ingress}\n" in said.output
    assert "egress:  allow (no policy selects this end)\n" in said.output
    assert said.output.endswith("denied\n" if status else "allowed\n")


def test_test_of_an_audited_policy_allows_and_says_what_it_would_do(file: Path) -> None:
    file.write_text(WATCHED)
    said = policy("test", file, "--from", "shop", "--to", "shop/app=db", "--port", 1)
    assert said.exit_code == 0
    assert "allow (would deny: networkpolicy:shop/db no ingress rule allows it)" in said.output


@pytest.mark.parametrize(
    ("end", "message"),
    [
        ("", "an end is a namespace with labels, or an address"),
        ("/app=web", "the namespace is missing"),
        ("shop/app", "'app' is not key=value"),
        ("shop/app=a,app=b", "label 'app' is given twice"),
        ("shop@nowhere", "nowhere"),
        ("shop/a=\x1b", "an end is"),
    ],
)
def test_an_end_that_makes_no_sense_is_refused(file: Path, end: str, message: str) -> None:
    said = policy("test", file, "--from", end, "--to", "shop", "--port", 80)
    assert said.exit_code == 2
    assert message in said.stderr


def test_an_end_with_everything() -> None:
    end = read_end("shop/app=web,tier=@fd77::2")
    assert (end.identity.namespace, end.identity.labels) == ("shop", {"app": "web", "tier": ""})
    assert str(end.address) == "fd77::2"


# --- diff -----------------------------------------------------------------------------------------


def test_diff_names_pairs_ports_and_rules(tmp_path: Path) -> None:
    said = diff(tmp_path, DB, WIDER, json.dumps(CONTAINERS))
    assert said.exit_code == 1
    assert said.output == (
        "shop/web 10.77.1.2 to shop/db 10.77.2.2, ports 5433 to 5440:\n"
        "  - denied: deny (networkpolicy:shop/db no ingress rule allows it)\n"
        "  + allowed: allow (networkpolicy:shop/db ingress[0])\n"
    )


@pytest.mark.parametrize("new", [DB, NAMED], ids=["the same", "by the port's name"])
def test_diff_of_what_means_the_same_finds_nothing(tmp_path: Path, new: str) -> None:
    said = diff(tmp_path, DB, new, json.dumps(CONTAINERS))
    assert said.exit_code == 0
    assert said.output == "the verdicts of 3 containers about each other stay the same\n"


def test_diff_shows_that_a_policy_is_only_watched_from_now_on(tmp_path: Path) -> None:
    said = diff(tmp_path, DB, WATCHED, json.dumps(CONTAINERS))
    assert said.exit_code == 1
    assert "ports 1 to 5431:\n" in said.output
    assert "ports 5433 to 65535:\n" in said.output


@pytest.mark.parametrize(
    "containers", ["", "[]", '{"containers": [{}]}', '{"containers": [{"addresses": ["x"]}]}']
)
def test_diff_refuses_what_ps_does_not_print(tmp_path: Path, containers: str) -> None:
    said = diff(tmp_path, DB, WIDER, containers)
    assert said.exit_code == 2
    assert "not what `slimctl ps --json` prints" in said.stderr


def test_diff_with_a_mistake_says_which_file_has_it(tmp_path: Path) -> None:
    said = diff(tmp_path, DB, BROKEN, json.dumps(CONTAINERS))
    assert said.exit_code == 2
    assert f"{tmp_path / 'new.yaml'}:7: " in said.stderr
