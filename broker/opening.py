"""The first segment of a host connection: a SYN with the sealed record in it."""

from __future__ import annotations

import errno
import os
import socket

from slim.broker.admission.preamble import RECORD_BYTES

_SYN_FLAGS = socket.MSG_FASTOPEN | socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL


def send_syn(
    sock: socket.socket, record: bytes, address: tuple[str, int], nonblocking: bool
) -> bytes:
    """Start the handshake with the record in the SYN; gives what is still to be sent.

    OSError EOPNOTSUPP if net.ipv4.tcp_fastopen lacks bit 1 (client) and the program will not
    wait: then nobody could send the record before the program's own bytes.
    """
    try:
        if sock.sendto(record, _SYN_FLAGS, address) != RECORD_BYTES:
            raise OSError(errno.EMSGSIZE, "the record does not fit the SYN")
        return b""
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP or nonblocking:
            raise
    # The flag is set for the moment of this call only: the file is not the program's yet.
    os.set_blocking(sock.fileno(), False)
    try:
        code = sock.connect_ex(address)
    finally:
        os.set_blocking(sock.fileno(), True)
    if code not in (0, errno.EINPROGRESS):
        raise OSError(code, os.strerror(code))
    return record
