"""Files and directories: all of it or nothing, bounded, and read again only where it changed."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from slim.plugins.policy.networkpolicy import loading
from slim.plugins.policy.networkpolicy.loading import Loaded, load

if TYPE_CHECKING:
    from pathlib import Path


def policy(name: str, port: object = 80) -> str:
    return f"""apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{name: {name}, namespace: shop}}
spec: {{ingress: [{{ports: [{{port: {port}}}]}}]}}
"""


@pytest.fixture
def hundred(tmp_path: Path) -> Path:
    """A directory with a hundred good files."""
    for number in range(100):
        (tmp_path / f"{number:02}.yaml").write_text(policy(f"p-{number}"))
    return tmp_path


def only(loaded: Loaded) -> str:
    (mistake,) = loaded.mistakes
    assert mistake.remedy
    return str(mistake)


def test_a_hundred_files_are_a_hundred_policies(hundred: Path) -> None:
    loaded = load(hundred)
    assert loaded.mistakes == []
    assert len(loaded.resources) == 100


def test_one_bad_file_of_a_hundred_is_told_by_name_and_line(hundred: Path) -> None:
    (hundred / "57.yaml").write_text(f"{policy('ok')}---\n{policy('p-57', 99999)}")
    assert only(load(hundred)) == (
        f"{hundred}/57.yaml:9: document 2, NetworkPolicy shop/p-57: "
        "spec.ingress[0].ports[0].port: 99999 is not between 1 and 65535"
    )


def test_a_directory_is_read_by_suffix_without_hidden_files_and_those_below(
    tmp_path: Path,
) -> None:
    for name in ("a.yaml", "b.yml", "c.json", "d.txt", ".e.yaml", "f.yaml~"):
        (tmp_path / name).write_text(policy(name[:1].replace(".", "e")))
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "g.yaml").write_text(policy("g"))
    assert [each.name for each in load(tmp_path).resources] == ["a", "b", "c"]


def test_an_empty_directory_and_an_empty_file_say_nothing(tmp_path: Path) -> None:
    assert load(tmp_path).mistakes == []
    (tmp_path / "a.yaml").write_text("# nothing yet\n---\n---\n")
    loaded = load(tmp_path)
    assert (loaded.resources, loaded.mistakes) == ([], [])


def test_a_path_that_does_not_exist_is_a_mistake(tmp_path: Path) -> None:
    assert only(load(tmp_path / "none")) == (
        f"{tmp_path}/none: cannot be read: No such file or directory"
    )


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.yaml")
    (tmp_path / "b.yaml").mkdir()
    (tmp_path / "c.yaml").symlink_to(tmp_path / "gone")
    told = [str(each) for each in load(tmp_path).mistakes]
    assert told == [
        f"{tmp_path}/a.yaml: is no file",
        f"{tmp_path}/b.yaml: is no file",
        f"{tmp_path}/c.yaml: cannot be read: No such file or directory",
    ]


def test_one_name_may_be_there_once(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(policy("p"))
    (tmp_path / "b.yaml").write_text(policy("q") + "---\n" + policy("p"))
    assert only(load(tmp_path)) == (
        f"{tmp_path}/b.yaml:6: document 2: metadata.name: shop/p is also in {tmp_path}/a.yaml:1"
    )


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("a: [1", 2, "this is no YAML"),
        ("a: b: c", 1, "this is no YAML"),
        ("a: 1\n\tb: 2", 2, "this is no YAML"),
        ("a: \x01", 0, "this is no YAML"),
        ("a: &x 1\nb: *x", 2, "aliases are not read here"),
        ("a: {b: 1}\na: 2", 2, "the key 'a' is there twice"),
        ("<<: {a: 1}", 1, "merge keys (<<) are not read here"),
        ("1: a", 1, "a key must be text, not a number"),
        ("{[a]: b}", 1, "a key must be text, not a list"),
        ("a: !!python/object:os.system x", 1, "the tag"),
        ("a: !!binary aGk=", 1, "the tag"),
        ("a: !custom {}", 1, "the tag"),
        ("[" * 200, 1, "nested more than 32 deep"),
        ("a: [" + "1," * 200_000 + "]", 1, "a document of more than 100000 values"),
    ],
)
def test_yaml_that_is_not_read(tmp_path: Path, text: str, line: int, message: str) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(text)
    told = only(load(file))
    assert message in told
    assert told.startswith(f"{file}:{line}:" if line else f"{file}: ")


def test_deep_nesting_ends_before_it_costs_anything(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("[" * 1_000_000)
    assert "nested" in only(load(file))


def test_what_is_no_text_is_told_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes(b"a: 1\nb: \xff\n")
    assert only(load(tmp_path)) == f"{tmp_path}/a.yaml:2: this is no UTF-8"


def test_documents_before_a_broken_one_are_no_excuse(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(f"{policy('p')}---\na: [")
    assert "document 2" in only(load(tmp_path))


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        ("MAX_FILE_BYTES", "is larger than"),
        ("MAX_TOTAL_BYTES", "MiB of policies"),
        ("MAX_FILES", "100 files, and 99 are the most"),
    ],
)
def test_sizes_are_bounded(
    hundred: Path, monkeypatch: pytest.MonkeyPatch, limit: str, message: str
) -> None:
    monkeypatch.setattr(loading, limit, 99)
    assert message in str(load(hundred).mistakes[0])


def test_a_file_that_did_not_change_is_not_read_again(
    hundred: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = load(hundred)
    read: list[str] = []
    real = loading.read_text

    def noting(file: str, raw: bytes) -> loading.FileContent:
        read.append(file)
        return real(file, raw)

    monkeypatch.setattr(loading, "read_text", noting)
    (hundred / "07.yaml").write_text(policy("p-7", 81))
    after = load(hundred, before)
    assert read == [f"{hundred}/07.yaml"]
    kept = {id(each) for each in before.resources} & {id(each) for each in after.resources}
    assert len(kept) == 99
