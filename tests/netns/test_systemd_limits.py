"""slimd with no more than contrib/systemd/slimd.service leaves it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from support.measuring import vxlan_packets
from support.two_hosts import Settings, TwoHosts

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.two_hosts import Workload

pytestmark = [
    pytest.mark.needs_root,
    pytest.mark.needs_netns,
    pytest.mark.needs_program("setpriv", "/usr/bin/python3"),
]

UNIT = Path(__file__).parents[2] / "contrib" / "systemd" / "slimd.service"
PORT = 8000
NOISE_PACKETS = 50
BULK_BYTES = 8 << 20
# Not our own interpreter: `nobody` may be kept from where it is installed.
# The server accepts on a duplicate, which slimd finds in /proc/PID/fd.
ECHO_SERVER = (
    "/usr/bin/python3",
    "-c",
    """\
import signal, socket, sys
signal.alarm(60)
listener = socket.socket()
listener.bind(("0.0.0.0", int(sys.argv[1])))
twin = listener.dup()
listener.listen()
print("true", flush=True)
sock, _ = twin.accept()
while data := sock.recv(1 << 16):
    sock.sendall(data)
""",
)
ECHO_CLIENT = (
    "/usr/bin/python3",
    "-c",
    """\
import signal, socket, sys, threading
signal.alarm(60)
sock = socket.create_connection((sys.argv[1], int(sys.argv[2])))
payload = bytes(int(sys.argv[3]))
threading.Thread(target=sock.sendall, args=(payload,)).start()
received = 0
while received < len(payload):
    received += len(sock.recv(1 << 16))
print("true")
""",
)


@pytest.fixture(scope="module")
def hosts() -> Iterator[TwoHosts]:
    """Both slimds under the unit's capabilities and no_new_privs."""
    found = re.search(r"^CapabilityBoundingSet=(.+)$", UNIT.read_text(), re.MULTILINE)
    assert found is not None
    left = ",".join(f"+{name.removeprefix('CAP_').lower()}" for name in found[1].split())
    wrapper = ("setpriv", "--no-new-privs", f"--bounding-set=-all,{left}", "--inh-caps=-all")
    limited = Settings(wrapper=wrapper)
    with TwoHosts(limited, limited) as two_hosts:
        yield two_hosts


@pytest.mark.parametrize("user", ["root", "nobody"])
def test_programs_are_brokered_whoever_runs_them(
    hosts: TwoHosts, client: Workload, server: Workload, user: str
) -> None:
    number = PORT + ["root", "nobody"].index(user)
    near, far = client.under("--user", user), server.under("--user", user)
    far.start(*ECHO_SERVER, str(number)).result()
    before = vxlan_packets(hosts)
    assert near.run(*ECHO_CLIENT, server.address4, str(number), str(BULK_BYTES)).strip() == "true"
    assert vxlan_packets(hosts) - before < NOISE_PACKETS
