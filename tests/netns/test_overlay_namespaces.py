"""Namespaces that slimd makes for slim-run --overlay, and the overlay from slimd's event loop.

Everything happens in child processes in a host's namespace; they print JSON.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from support.overlay_hosts import Host, addresses_of, devices_of, inside, run_inside, two_hosts
from support.polling import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_netns]

CREATE = "create web --network 10.77.0.0/16 --subnet 10.77.1.0/24 --underlay 192.168.77.1"

PRELUDE = """
import asyncio, json, os, sys
from pathlib import Path
from slim.broker.errors import SlimError
from slim.broker.overlay.namespaces import (
    discard, make_namespace, open_network, prepare, remove_namespace
)
from slim.broker.overlay.vxlan import Overlay, attach_namespace

name, state_dir = sys.argv[1], Path(sys.argv[2])

def here():
    return os.stat("/proc/thread-self/ns/net").st_ino

def refusal(call, *arguments, **keywords):
    try:
        call(*arguments, **keywords)
    except SlimError as error:
        return error.message
"""


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    with two_hosts(tmp_path) as hosts:
        yield hosts[0]


@pytest.fixture
def name() -> Iterator[str]:
    """A name for a namespace that the test makes."""
    chosen = f"slimtest-n-{secrets.token_hex(4)}"
    yield chosen
    with removed(chosen):
        pass


@contextmanager
def removed(name: str) -> Iterator[None]:
    """Remove a namespace at the end, if the test has not done so."""
    try:
        yield
    finally:
        subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def said_by(host: Host, name: str, code: str) -> Any:
    output = run_inside(
        host.netns,
        *(sys.executable, "-W", "error", "-c", PRELUDE + code, name, str(host.state_dir)),
    )
    return json.loads(output)


def test_a_namespace_is_made_as_ip_netns_makes_it(host: Host, name: str) -> None:
    stayed = said_by(
        host, name, "before = here(); make_namespace(name); print(json.dumps(before == here()))"
    )
    assert stayed is True
    assert name in subprocess.check_output(["ip", "netns", "list"], text=True)
    assert os.stat(f"/run/netns/{name}").st_ino != os.stat(f"/run/netns/{host.netns}").st_ino
    assert devices_of(name) == {"lo"}
    # ip-netns(8) removes what we made.
    subprocess.check_call(["ip", "netns", "del", name])


def test_a_namespace_that_ip_netns_made_is_removed(host: Host, name: str) -> None:
    subprocess.check_call(["ip", "netns", "add", name])
    assert said_by(host, name, "remove_namespace(name); print(json.dumps(True))")
    assert not Path(f"/run/netns/{name}").exists()


def test_what_making_a_namespace_left_behind_is_removed(host: Host, name: str) -> None:
    Path(f"/run/netns/{name}").touch()
    assert said_by(host, name, "remove_namespace(name); print(json.dumps(True))")
    assert not Path(f"/run/netns/{name}").exists()


def test_a_name_that_is_taken_is_refused_and_kept(host: Host, name: str) -> None:
    first, second = said_by(
        host,
        name,
        """
make_namespace(name)
inode = os.stat(f"/run/netns/{name}").st_ino
message = refusal(make_namespace, name)
print(json.dumps([message, inode == os.stat(f"/run/netns/{name}").st_ino]))
""",
    )
    assert first == f"there is a network namespace {name} already"
    assert second is True


def test_names_that_are_paths_are_refused(host: Host, name: str) -> None:
    messages = said_by(
        host,
        name,
        """
names = ["", ".", "..", "../escaped", "a/b", "new\\nline", "x" * 256]
print(json.dumps([refusal(make_namespace, one) for one in names]))
""",
    )
    assert all("is not a name for a network namespace" in message for message in messages)


def test_removing_what_is_not_there_is_refused(host: Host, name: str) -> None:
    message = said_by(host, name, "print(json.dumps(refusal(remove_namespace, name)))")
    assert message == f"there is no network namespace {name}"


def test_a_prepared_namespace_is_on_the_overlay_and_goes_when_discarded(host: Host) -> None:
    host.succeed(CREATE)
    made, same, gone = said_by(
        host,
        "",
        """
made, fd = prepare("web", "10.77.1.9", state_dir=state_dir)
same = os.fstat(fd).st_ino == os.stat(f"/run/netns/{made}").st_ino
(attachment,) = Overlay.load("web", state_dir=state_dir).read().attachments
shown = [str(one) for one in attachment.addresses]
discard(made)
os.close(fd)
print(json.dumps([made, [same, shown], not Path(f"/run/netns/{made}").exists()]))
""",
    )
    with removed(made):
        assert same == [True, ["10.77.1.9"]]
        assert gone is True
    # The address is free once the kernel took the namespace down.
    eventually(
        lambda: "no container is attached" in host.succeed("show web")[0], "nobody is attached"
    )


@pytest.mark.parametrize(
    ("overlay", "address", "message"),
    [
        ("db", None, "there is no overlay 'db' on this host"),
        ("web", "10.78.0.1", "10.78.0.1 is not an address of this host's subnet 10.77.1.0/24"),
        ("web", "nonsense", "'nonsense' is not an IP address"),
    ],
)
def test_a_namespace_that_cannot_be_prepared_leaves_nothing(
    host: Host, overlay: str, address: str | None, message: str
) -> None:
    host.succeed(CREATE)
    refused, left = said_by(
        host,
        "",
        f"""
import secrets
# Known beforehand, since other tests make namespaces of their own meanwhile.
secrets.token_hex = lambda count: "{secrets.token_hex(6)}"
message = refusal(prepare, {overlay!r}, {address!r}, state_dir=state_dir)
print(json.dumps([message, Path("/run/netns/slim-" + secrets.token_hex(6)).exists()]))
""",
    )
    assert message in refused
    assert left is False


def test_the_overlay_works_from_threads_beside_a_running_event_loop(host: Host) -> None:
    host.succeed(CREATE)
    addresses, stayed, loops = said_by(
        host,
        "",
        """
async def main():
    before = here()
    made = await asyncio.gather(
        *(asyncio.to_thread(prepare, "web", None, state_dir=state_dir) for _ in range(8))
    )
    overlay = Overlay.load("web", state_dir=state_dir)
    shown = [str(one.addresses[0]) for one in overlay.read().attachments]
    for name, fd in made:
        await asyncio.to_thread(overlay.detach, namespace=fd)
        await asyncio.to_thread(discard, name)
        os.close(fd)
    try:
        overlay.detach(address=None)
    except RuntimeError as error:
        refused = str(error)
    return shown, before == here(), refused

print(json.dumps(asyncio.run(main(), debug=True)))
""",
    )
    assert sorted(addresses) == [f"10.77.1.{number}" for number in range(1, 9)]
    assert stayed is True
    assert "asyncio.to_thread" in loops
    assert [name for name in host.devices() if name.startswith("sc-")] == []


def test_a_namespace_is_attached_by_path_and_by_fd(host: Host, name: str) -> None:
    host.succeed(CREATE)
    by_path, by_fd = said_by(
        host,
        name,
        """
make_namespace(name)
by_path = attach_namespace("web", f"/run/netns/{name}", state_dir=state_dir)
fd = open_network(name)
by_fd = attach_namespace("web", fd, state_dir=state_dir)
os.fstat(fd)
print(json.dumps([[str(one) for one in by_path], [str(one) for one in by_fd]]))
""",
    )
    assert by_path == by_fd == ["10.77.1.1"]
    assert addresses_of(name, "eth0") == {"10.77.1.1/16"}


def test_a_lock_that_is_held_is_waited_for_and_then_an_error(host: Host) -> None:
    host.succeed(CREATE)
    holder = subprocess.Popen(
        inside(host.netns, "flock", str(host.state_dir), "sh", "-c", "echo held; read line"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        message = said_by(
            host,
            "",
            """
from slim.broker.overlay import state
state.LOCK_LIMIT_S = 0.2
print(json.dumps(refusal(Overlay.load("web", state_dir=state_dir).delete)))
""",
        )
    finally:
        holder.communicate("go\n", timeout=10)
    assert "another command has held the lock" in message
    host.succeed("delete web")
