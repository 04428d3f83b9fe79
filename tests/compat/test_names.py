"""What a connected socket says of itself, and what of the program's socket it keeps."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support.compatibility import Cases
from support.probes import connected, peers

if TYPE_CHECKING:
    from support.pairs import Pair

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_netns]
COMPATIBILITY = Cases(heading="Names, options, copies")


def test_names_before_and_after_connect(pair: Pair) -> None:
    seen = pair.call(connected.names)
    assert seen["before"] == peers.endpoint((pair.anywhere, 0))
    assert seen["peer_before"] == "ENOTCONN"
    pair.check_addresses(seen["greeting"])
    assert seen["after_end"] == seen["greeting"]["client_name"]


def test_names_with_bad_arguments(pair: Pair, version: int) -> None:
    size = 16 if version == 4 else 28
    seen = pair.call(connected.names_with_bad_arguments)
    for call in ("getsockname", "getpeername"):
        assert seen[f"{call}: bad pointer"] == "EFAULT"
        assert seen[f"{call}: bad length pointer"] == "EFAULT"
        assert seen[f"{call}: negative length"] == "EINVAL"
        assert seen[f"{call}: length of 4"] == [size, True]
        assert seen[f"{call}: length of 0"] == size


def test_options_set_before_connect_are_in_force_after_it(pair: Pair) -> None:
    for name, (before, after) in pair.call(connected.options).items():
        assert before == after, name


def test_flags_and_owner_of_the_fd_are_kept(pair: Pair) -> None:
    assert pair.call(connected.file_state) == [[True, True]] * 4


def test_both_numbers_of_a_duplicated_socket_are_the_connection(pair: Pair) -> None:
    seen = pair.call(connected.duplicate_before_connect)
    assert seen["same_file"]
    assert seen["copy_name"] == seen["greeting"]["client_name"]
    assert seen["copy_peer"] == seen["greeting"]["client_peer"]
    pair.check_addresses(seen["greeting"])


@pytest.mark.falls_back("a copy in another process cannot be replaced")
def test_socket_shared_with_a_child_is_connected_for_both(pair: Pair) -> None:
    pair.check_addresses(pair.call(connected.fork_before_connect), path="own")


def test_connection_lives_on_in_a_child(pair: Pair) -> None:
    pair.check_addresses(pair.call(connected.inherit_connection))
