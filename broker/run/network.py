"""Which network namespace the command runs in, and how slim-run gets there."""

from __future__ import annotations

import errno
import os

from slim.broker.errors import SlimError
from slim.broker.kernel import namespaces

NAMED = "/run/netns"
ETC = "/etc/netns"
CURRENT = "/proc/self/ns/net"


def open_network(netns: str | None) -> int:
    """The namespace that --netns names (None: the current one); the caller owns the fd."""
    if netns is None:
        path = CURRENT
    elif "/" in netns:
        path = netns
    elif netns.isascii() and netns.isdigit():
        path = f"/proc/{netns}/ns/net"
    elif netns in (".", ".."):
        # Not names; as such the second one would put all of /etc over itself.
        raise SlimError(f"{netns!r} is not the name of a network namespace")
    else:
        path = f"{NAMED}/{netns}"
    try:
        return namespaces.open_namespace(path)
    except OSError as error:
        raise SlimError(
            f"cannot open the network namespace {path}: {error.strerror}",
            hint="--netns takes a name from `ip netns list`, a path, or a process id",
        ) from None


def enter_network(namespace: int, netns: str | None) -> list[str]:
    """Move this process into the namespace; borrows the fd. Gives what did not work, if anything.

    A namespace given by name gets its own files of /etc too, as with ip-netns(8). Unlike there
    /sys stays: a new sysfs would hide what is mounted below it (cgroup2), and programs look for
    their limits there.
    """
    try:
        namespaces.setns(namespace, namespaces.CLONE_NEWNET)
    except OSError as error:
        subject = netns or "that slimd made"
        raise SlimError(
            f"cannot enter the network namespace {subject}: {error.strerror}",
            hint=_HINTS.get(error.errno or 0, ""),
        ) from None
    if netns is None or not _is_name(netns):
        return []
    try:
        # Not pathlib, whose import takes 6 ms.
        names = os.listdir(f"{ETC}/{netns}")
    except (FileNotFoundError, NotADirectoryError):
        return []
    return _bind_etc(f"{ETC}/{netns}", names)


def _is_name(netns: str) -> bool:
    return "/" not in netns and not (netns.isascii() and netns.isdigit())


def _bind_etc(directory: str, names: list[str]) -> list[str]:
    try:
        namespaces.unshare(namespaces.CLONE_NEWNS)
        # Mounts from outside still arrive, ours stay here.
        namespaces.mount("", "/", namespaces.MS_REC | namespaces.MS_SLAVE)
    except OSError as error:
        raise SlimError(
            f"cannot put the files of {directory} over those of /etc: {error}"
        ) from None
    problems = []
    for name in names:
        try:
            namespaces.mount(f"{directory}/{name}", f"/etc/{name}", namespaces.MS_BIND)
        except OSError as error:
            # ip-netns(8) goes on as well: mostly a file that /etc does not have.
            problems.append(str(error))
    return problems


_HINTS = {
    errno.EPERM: "entering a network namespace takes root (CAP_SYS_ADMIN)",
    errno.EINVAL: "it is not a network namespace",
}
