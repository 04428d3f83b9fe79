"""Two network namespaces as hosts, joined by a veth pair, and containers on them.

Nothing here moves the pytest process: commands run in child processes, entered by nsenter(1).
"""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# Runs several commands in one process, since starting one takes longer than what it does.
_SLIMCTL = """
import contextlib, io, json, sys
from slim.broker.cli.main import main
said = []
for arguments in json.load(sys.stdin):
    out, err = io.StringIO(), io.StringIO()
    status = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(arguments)
        except SystemExit as end:
            status = end.code or 0
    said.append((status, out.getvalue(), err.getvalue()))
json.dump(said, sys.stdout)
"""

_SERVE = """
import socket, sys
with socket.create_server((sys.argv[1], 0), family=int(sys.argv[2])) as listener:
    listener.settimeout(30)
    print(listener.getsockname()[1], flush=True)
    connection, peer = listener.accept()
    with connection:
        connection.settimeout(30)
        received = 0
        while data := connection.recv(65536):
            received += len(data)
        connection.sendall(f"{peer[0]} {received}".encode())
"""

_SEND = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=30) as connection:
    connection.sendall(b"x" * int(sys.argv[3]))
    connection.shutdown(socket.SHUT_WR)
    print(connection.recv(100).decode())
"""


@dataclass(frozen=True)
class Said:
    """What one slimctl command said."""

    status: int
    out: str
    err: str


class Host:
    """A namespace that plays a host; `state_dir` is its /var/lib/slim."""

    def __init__(self, netns: str, address: str, address6: str, state_dir: Path) -> None:
        self.netns = netns
        self.address = address
        self.address6 = address6
        self.state_dir = state_dir

    def overlay(self, *commands: str) -> list[Said]:
        """Run `slimctl overlay` commands there, one after the other; warnings are errors."""
        lines = [
            ["overlay", "--state-dir", str(self.state_dir), *command.split()]
            for command in commands
        ]
        output = run_inside(
            self.netns, sys.executable, "-W", "error", "-c", _SLIMCTL, input_text=json.dumps(lines)
        )
        return [Said(*one) for one in json.loads(output)]

    def succeed(self, *commands: str) -> list[str]:
        """As `overlay`; gives what the commands printed, and fails the test if one failed."""
        said = self.overlay(*commands)
        assert [(one.status, one.err) for one in said] == [(0, "")] * len(said)
        return [one.out for one in said]

    def fail(self, command: str) -> str:
        """One command that is refused, with a message and a hint; gives what it printed."""
        (said,) = self.overlay(command)
        assert said.status != 0
        assert said.out == ""
        assert "Traceback" not in said.err
        return said.err

    def devices(self) -> set[str]:
        return devices_of(self.netns)


def devices_of(netns: str) -> set[str]:
    return {one["ifname"] for one in ip(netns, "link show")}


def device_of(netns: str, name: str) -> dict[str, Any]:
    """One device as `ip -details -json` shows it."""
    found: dict[str, Any]
    (found,) = ip(netns, f"-details link show dev {name}")
    return found


def addresses_of(netns: str, name: str) -> set[str]:
    """Global addresses of a device, each with its prefix length."""
    return {
        f"{one['local']}/{one['prefixlen']}"
        for link in ip(netns, f"address show dev {name} scope global")
        for one in link.get("addr_info", [])
        if "local" in one
    }


def ip(netns: str, command: str) -> Any:
    """ip(8) with JSON output, which is nothing for what changes things."""
    output = _run("ip", "-json", "-netns", netns, *command.split())
    return json.loads(output) if output.strip() else []


def run_inside(netns: str, *command: str, input_text: str = "") -> str:
    return _run(*inside(netns, *command), input_text=input_text)


def send(source: str, destination: str, address: str, size: int = 200_000) -> str:
    """TCP from one namespace to another: who the receiver saw, and how much it received."""
    family = "10" if ":" in address else "2"
    server = subprocess.Popen(
        inside(destination, sys.executable, "-c", _SERVE, address, family),
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stdout is not None
        port = server.stdout.readline().strip()
        assert port, "the server did not start"
        answer = run_inside(source, sys.executable, "-c", _SEND, address, port, str(size))
        server.wait(10)
    finally:
        server.kill()
        server.communicate()
    return answer.strip()


@contextmanager
def namespace(kind: str = "c") -> Iterator[str]:
    """A new network namespace of that kind, removed at the end."""
    name = f"slimtest-{kind}-{secrets.token_hex(4)}"
    _run("ip", "netns", "add", name)
    try:
        yield name
    finally:
        # The test may have removed it.
        subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


@contextmanager
def two_hosts(state_dir: Path, mtu: int = 1500) -> Iterator[tuple[Host, Host]]:
    """Two hosts that reach each other over IPv4 and IPv6 on a link of that MTU."""
    with ExitStack() as stack:
        names = [stack.enter_context(namespace("h")) for _ in range(2)]
        _run(
            *f"ip link add under0 netns {names[0]} type veth".split(),
            *f"peer name under0 netns {names[1]}".split(),
        )
        hosts = []
        for number, name in enumerate(names, 1):
            host = Host(
                name,
                f"192.168.77.{number}",
                f"fd99:77::{number}",
                state_dir / f"host{number}",
            )
            ip(name, f"address add {host.address}/24 dev under0")
            ip(name, f"address add {host.address6}/64 dev under0 nodad")
            ip(name, f"link set under0 up mtu {mtu}")
            hosts.append(host)
        yield hosts[0], hosts[1]


def inside(netns: str, *command: str) -> list[str]:
    """The command, to be run in that namespace."""
    return ["nsenter", f"--net=/run/netns/{netns}", "--", *command]


def _run(*command: str, input_text: str = "") -> str:
    done = subprocess.run(
        command, input=input_text, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    return done.stdout
