"""The process that a runtime names: its network namespace, read without mistaking it for another.

A process id may be somebody else's by the time we look: the pidfd is opened first, and the process
must still live when everything else was read.
"""

from __future__ import annotations

import os
import select
from pathlib import Path

from slim.broker.errors import ControlError
from slim.broker.kernel.namespaces import open_namespace

SECCOMP_MODE_FILTER = 2
"""In the line Seccomp of /proc/PID/status (proc(5))."""


def open_network(pid: int) -> int | None:
    """The process's network namespace, an fd that the caller owns; None if the process has ended.

    ControlError if it runs under no filter: then it is not the one that the runtime means.
    """
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    except OSError as error:
        raise ControlError(f"process {pid} cannot be watched: {error.strerror}") from None
    try:
        try:
            mode = _seccomp_mode(pid)
            netns = open_namespace(f"/proc/{pid}/ns/net")
        except (FileNotFoundError, ProcessLookupError):
            return None
        except OSError as error:
            raise ControlError(f"process {pid} cannot be looked at: {error.strerror}") from None
        if _has_ended(pidfd):
            os.close(netns)
            return None
        if mode != SECCOMP_MODE_FILTER:
            os.close(netns)
            raise ControlError(
                f"process {pid} has no seccomp filter",
                hint="slimd must see the runtime's process ids: run both in one PID namespace",
            )
        return netns
    finally:
        os.close(pidfd)


def _seccomp_mode(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        key, _, value = line.partition(":")
        if key == "Seccomp":
            return int(value)
    return 0


def _has_ended(pidfd: int) -> bool:
    # pidfd_open(2): readable when the process terminates.
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))
