"""What the first implementation of the idea failed at, as programs do it."""

from __future__ import annotations

import socket
import struct
import threading
from typing import Any

from support.probes.peers import check_echo, family_of, greeted, listen
from support.probes.reporting import report

MANY_BYTES = 1 << 20


def connect_while_accepting(address: str, port: int, anywhere: str, own_port: int) -> None:
    """One thread waits in accept, another connects and is done; then the first gets a client."""
    listener = listen(anywhere, own_port)
    greetings: list[dict[str, Any]] = []

    def connect() -> None:
        with socket.create_connection((address, port), timeout=10) as sock:
            greetings.append(greeted(sock))
        report(greetings)

    thread = threading.Thread(target=connect)
    thread.start()
    sock, _ = listener.accept()
    thread.join()
    sock.close()


def told_by_tcp_info(address: str, port: int) -> dict[str, int]:
    """tcpi_bytes_acked and tcpi_bytes_received (linux/tcp.h) after a megabyte each way."""
    with socket.socket(family_of(address)) as sock:
        sock.settimeout(20)
        sock.connect((address, port))
        greeted(sock)
        check_echo(sock, MANY_BYTES)
        raw = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 136)
    acked, received = struct.unpack_from("=QQ", raw, 120)
    return {"acked": acked, "received": received}
