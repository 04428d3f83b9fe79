"""Takes away what a guard pinned, for good: `slimd --cleanup`."""

from __future__ import annotations

import time

from slim.broker.errors import SlimError
from slim.broker.guard.places import Places, find_places, remove_places, remove_workloads
from slim.broker.kernel import bpf, features, sock_diag

PATIENCE_S = 5.0


def guarded_sockets(places: Places) -> list[sock_diag.TcpSocket]:
    """Listeners and connections in this network namespace that the guard confines."""
    cgroups = {path.stat().st_ino for path in places.workloads().values()}
    return [sock for _, sock in sock_diag.dump_cgroups(cgroups)] if cgroups else []


def clean_up(instance: str, *, cut: bool) -> int:
    """How many sockets were cut. SlimError while guarded ones live, unless told to cut them.

    Run in the host's network namespace. Nothing to remove is no error.
    """
    if features.cgroup2_mount() is None:
        return 0
    places = find_places(instance)
    living = guarded_sockets(places)
    if living and not cut:
        raise SlimError(
            f"{len(living)} guarded sockets are alive, such as {living[0].local}: without the "
            "guard the containers that hold them would be confined by nothing",
            hint="end the containers, or cut the sockets with --cut",
        )
    for sock in living:
        sock_diag.destroy_tcp(sock)
    # A socket that was cut is closed, but who holds it could use it again: the guard stays until
    # the last one is gone. The kernel lets go of a cgroup some time after.
    deadline = time.monotonic() + PATIENCE_S
    while (held := remove_workloads(places)) and time.monotonic() < deadline:
        time.sleep(0.05)
    if held:
        raise SlimError(
            f"programs still hold sockets of {held} guarded workloads: the guard stays",
            hint="end the containers, then run slimd --cleanup again",
        )
    if bpf.is_bpffs(places.pins.parent):
        remove_places(places)
    return len(living)
