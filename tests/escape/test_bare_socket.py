"""What a container could do with a host socket in hand: done to an unguarded one, refused here.

Each attack first succeeds on a socket without the guard, so that the test can fail.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from support import guard_attacks as attacks
from support import guard_calls as calls
from support.guard_host import Host, two_hosts

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_netns]
TARGETS = Path(__file__).resolve().parents[1] / "support" / "targets"


@pytest.fixture(scope="module")
def hosts() -> Iterator[tuple[Host, Host]]:
    with two_hosts() as pair:
        yield pair


@pytest.fixture(scope="module")
def host(hosts: tuple[Host, Host]) -> Host:
    return hosts[0]


@pytest.fixture(scope="module")
def port(host: Host) -> int:
    found: int = host.call(calls.listening_port, "secret")
    return found


@pytest.mark.parametrize("name", [*attacks.ATTACKS, *attacks.ATTACKS_IPV6])
def test_an_attack_is_refused_by_the_guard_alone(host: Host, port: int, name: str) -> None:
    gained = host.call(attacks.run, name, port, False)
    assert not gained.startswith("E"), f"unguarded: {gained}"
    assert host.call(attacks.run, name, port, True) == "EPERM"


def test_whoever_gets_the_fd_is_confined(host: Host, port: int) -> None:
    assert host.call(attacks.pass_on, port, False) == "connected"
    assert host.call(attacks.pass_on, port, True) == "EPERM"


@pytest.mark.needs_program("gcc")
@pytest.mark.parametrize("source", ["int80_connect", "uring_connect"])
def test_calls_that_no_filter_sees_are_confined(
    host: Host, port: int, source: str, tmp_path: Path
) -> None:
    program = tmp_path / source
    subprocess.run(["gcc", "-o", program, TARGETS / f"{source}.c"], check=True)
    assert host.call(attacks.run_program, str(program), port, False) == "connected"
    assert host.call(attacks.run_program, str(program), port, True) == "EPERM"


def test_a_stray_listener_is_unreachable(hosts: tuple[Host, Host]) -> None:
    host, other = hosts
    open_port = host.call(attacks.stray_listener, False)
    assert other.call(calls.connect_plainly, host.addresses[4], open_port) == ""
    guarded_port = host.call(attacks.stray_listener, True)
    assert other.call(calls.connect_plainly, host.addresses[4], guarded_port) == "ETIMEDOUT"
