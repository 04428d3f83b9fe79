"""One socket with several owners: dup, fork, vfork, exec, SCM_RIGHTS: targets/inheriting.c."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support.compatibility import Cases

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.pairs import Both, Path

pytestmark = [
    pytest.mark.needs_root,
    pytest.mark.needs_netns,
    pytest.mark.needs_program("cc"),
    pytest.mark.parametrize("version", [4]),
]
COMPATIBILITY = Cases(heading="Copies, children and other programs")
OTHER_COPY = pytest.mark.falls_back("another process has a copy of the unconnected socket")
FLAVOURS = pytest.mark.parametrize("flavour", ["dynamic", "static"])


@pytest.fixture
def played(both: Both, compiled: Callable[[str, str], str]) -> Callable[..., list[str]]:
    """Plays a case against the greeting server, natively and under Slim."""

    def play(case: str, flavour: str = "dynamic", path: Path = "host") -> list[str]:
        program = compiled("inheriting", flavour)
        found: list[str] = both.same(
            lambda pair: pair.client.run(program, case, pair.address, str(pair.port)), path=path
        )
        return found

    return play


def test_copies_of_a_descriptor_are_connected_together(played: Callable[..., list[str]]) -> None:
    assert played("duplicates")[:4] == [
        "connect: 0",
        "first: kept on exec",
        "second: kept on exec",
        "third: closed on exec",
    ]


@OTHER_COPY
@FLAVOURS
def test_socket_of_the_parent_connected_by_the_child(
    played: Callable[..., list[str]], flavour: str
) -> None:
    seen = played("fork-connect", flavour, "own")
    assert "connect in the child: 0" in seen
    assert "parent: greeted by name" in seen


def test_connected_socket_after_fork(played: Callable[..., list[str]]) -> None:
    assert played("fork-after")[-1] == "parent: -1 EISCONN"


@OTHER_COPY
@FLAVOURS
def test_connect_between_vfork_and_exit(played: Callable[..., list[str]], flavour: str) -> None:
    assert played("vfork", flavour, "own")[:2] == ["child: 0", "connect in the parent: -1 EISCONN"]


@FLAVOURS
def test_socket_that_the_next_program_connects(
    played: Callable[..., list[str]], flavour: str
) -> None:
    assert played("exec-connect", flavour)[:2] == ["connect: 0", "greeting: greeted by name"]


def test_connected_socket_over_exec(played: Callable[..., list[str]]) -> None:
    assert "greeting: greeted by name" in played("exec-connected")


def test_close_on_exec_is_kept(played: Callable[..., list[str]]) -> None:
    assert played("exec-closes") == ["connect: 0", "inherited: -1 EBADF"]


def test_connected_socket_passed_to_another_process(played: Callable[..., list[str]]) -> None:
    assert "child: greeted by name" in played("pass-connected")


def test_socket_passed_before_it_is_connected(played: Callable[..., list[str]]) -> None:
    assert "child: greeted by name" in played("pass-unconnected")


@FLAVOURS
def test_threads_with_descriptors_of_their_own(
    played: Callable[..., list[str]], flavour: str
) -> None:
    seen = played("private-tables", flavour)
    assert "thread: greeted by name" in seen
    assert "main: greeted by name" in seen
