"""What slimd itself puts on the underlay: neither an overlay address nor a label in clear.

The overlay's own packets (VXLAN, with rendezvous inside) are left out: they are the overlay.
"""

from __future__ import annotations

import ipaddress
import signal
import subprocess
from typing import TYPE_CHECKING

import pytest

from support.polling import eventually
from support.probes import quiet

if TYPE_CHECKING:
    from pathlib import Path

    from support.two_hosts import TwoHosts

pytestmark = [
    pytest.mark.needs_root,
    pytest.mark.needs_netns,
    pytest.mark.needs_program("tcpdump"),
]

PORT = 8300
CONNECTIONS = 50
LABEL = "label-that-nobody-else-may-read"
PCAP_HEADER_BYTES = 24


def test_the_underlay_shows_no_overlay_address_and_no_label(
    hosts: TwoHosts, tmp_path: Path
) -> None:
    capture = tmp_path / "underlay.pcap"
    server = hosts.workload("b", "secret-server", role=LABEL)
    client = hosts.workload("a", "secret-client", role=LABEL)
    argv = [*hosts.machines["a"].prefix, "tcpdump", "--immediate-mode", "-U", "-n", "-s", "0"]
    # Root's capture stays root's: the directory of the test is not everybody's.
    argv += [
        "-Z",
        "root",
        "-i",
        "any",
        "-w",
        str(capture),
        "tcp",
        "and",
        "not",
        "host",
        "127.0.0.1",
    ]
    with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True) as tcpdump:
        try:
            assert tcpdump.stderr is not None
            assert any("listening on" in tcpdump.stderr.readline() for _ in range(3))
            for version, anywhere in ((4, "0.0.0.0"), (6, "::")):
                server.probe(quiet.echo_server, anywhere, PORT + version).result()
                address = server.address(version)
                assert client.call(quiet.echo, address, PORT + version, CONNECTIONS) == CONNECTIONS
            eventually(lambda: _captured(capture), "packets in the capture")
        finally:
            tcpdump.send_signal(signal.SIGTERM)
            tcpdump.wait(5)
    data = capture.read_bytes()
    # The capture is of the connections that were made: their payload is there.
    assert data.count(b"a quiet payload") >= CONNECTIONS
    for secret in (LABEL, "secret-server", "secret-client", server.address4, client.address6):
        assert secret.encode() not in data, secret
    for workload in (server, client):
        for version in (4, 6):
            packed = ipaddress.ip_address(workload.address(version)).packed
            assert packed not in data, workload.address(version)


def _captured(capture: Path) -> bool:
    return capture.exists() and capture.stat().st_size > PCAP_HEADER_BYTES
