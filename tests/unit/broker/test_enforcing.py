"""When a limit ends a connection; that it does so in the kernel is shown in tests/netns."""

from __future__ import annotations

import pytest

from slim.broker.connections import ConnectionRecord, pack
from slim.broker.endpoints import Endpoint
from slim.broker.enforcing import find_spent
from slim.broker.kernel.sock_diag import TcpSocket
from slim.broker.shaping import Shaping

OWN, PEER = Endpoint.parse("10.1.0.1:40000"), Endpoint.parse("10.1.0.9:80")
CREATED = 1_000_000.0


def record(shaping: Shaping | None) -> ConnectionRecord:
    return ConnectionRecord(
        7, 77, "out", pack(OWN), pack(PEER), pack(PEER), "b", "fast", "", "", 1, CREATED
    ).limited_by(shaping, None)


def sock(sent: int = 0, received: int = 0, idle_ms: int = 0) -> TcpSocket:
    return TcpSocket(
        2, 1, OWN, PEER, 7, 0, 9, bytes_acked=sent, bytes_received=received, idle_ms=idle_ms
    )


@pytest.mark.parametrize(
    ("shaping", "seen", "age_s", "words"),
    [
        (None, sock(1 << 40, 1 << 40, 1 << 20), 1e9, ""),
        (Shaping(send=1_000), sock(1 << 40, 0, 1 << 20), 1e9, ""),
        (Shaping(quota=1_024), sock(1_000, 23), 0, ""),
        (Shaping(quota=1_024), sock(1_000, 24), 0, "shaping: quota of 1KiB spent"),
        (Shaping(lifetime_s=60), sock(), 59.9, ""),
        (Shaping(lifetime_s=60), sock(), 60.0, "shaping: lifetime of 1m over"),
        (Shaping(idle_s=60), sock(idle_ms=59_999), 1e6, ""),
        (Shaping(idle_s=60), sock(idle_ms=60_000), 1e6, "shaping: idle for 1m"),
        # The kernel counts from boot until the first byte.
        (Shaping(idle_s=60), sock(idle_ms=1 << 30), 59.0, ""),
        # The clock was set back.
        (Shaping(lifetime_s=60, idle_s=60), sock(idle_ms=1 << 30), -100.0, ""),
    ],
)
def test_what_ends_a_connection(
    shaping: Shaping | None, seen: TcpSocket, age_s: float, words: str
) -> None:
    assert find_spent(record(shaping), seen, CREATED + age_s) == words
