"""Network namespaces by name, as ip-netns(8) keeps them: made, removed, opened.

The calling process stays where it is: a thread of its own makes the namespace and ends.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING

from slim.broker.endpoints import parse_address
from slim.broker.errors import ConfigError, SlimError, SyscallError
from slim.broker.kernel import namespaces
from slim.broker.overlay.state import DEFAULT_STATE_DIR
from slim.broker.overlay.vxlan import attach_namespace

if TYPE_CHECKING:
    from collections.abc import Iterator

NAMED = Path("/run/netns")
_MAX_NAME_BYTES = 255


def make_namespace(name: str) -> None:
    """Do what `ip netns add` does: a new network namespace, bound to /run/netns/NAME."""
    path = _path_of(name)
    try:
        with _shared_directory():
            os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0))
    except FileExistsError:
        raise SlimError(
            f"there is a network namespace {name} already", hint=f"ip netns del {name} removes it"
        ) from None
    except OSError as error:
        raise _failed(f"make the network namespace {name}", error) from None
    try:
        _bind_new(path)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise _failed(f"make the network namespace {name}", error) from None


def remove_namespace(name: str) -> None:
    """Do what `ip netns del` does: the name goes at once, the namespace with its last user."""
    path = _path_of(name)
    try:
        with suppress(SyscallError):
            # Nothing is mounted there when making it was cut short.
            namespaces.umount(str(path), namespaces.MNT_DETACH)
        path.unlink()
    except FileNotFoundError:
        raise SlimError(f"there is no network namespace {name}") from None
    except OSError as error:
        raise _failed(f"remove the network namespace {name}", error) from None


def open_network(text: str) -> int:
    """The namespace by name, path (with a slash) or process id; the caller owns the fd."""
    if "/" in text:
        path = text
    elif text.isascii() and text.isdigit():
        path = f"/proc/{text}/ns/net"
    else:
        path = str(_path_of(text))
    try:
        return namespaces.open_namespace(path)
    except OSError as error:
        raise SlimError(
            f"cannot open the network namespace {path}: {error.strerror}",
            hint="give a name from `ip netns list`, a path, or a process id",
        ) from None


def prepare(
    overlay: str, address: str | None, *, state_dir: Path = DEFAULT_STATE_DIR
) -> tuple[str, int]:
    """A new namespace on the overlay: its name and its fd, which the caller owns.

    The address is the next free one, or the one given as text. Nothing is left on failure.
    """
    try:
        wanted = None if address is None else parse_address(address)
    except ValueError:
        raise ConfigError(f"{address!r} is not an IP address") from None
    name = f"slim-{secrets.token_hex(6)}"
    make_namespace(name)
    try:
        fd = open_network(name)
        try:
            attach_namespace(overlay, fd, wanted, label=name, state_dir=state_dir)
        except BaseException:
            os.close(fd)
            raise
    except BaseException:
        remove_namespace(name)
        raise
    return name, fd


def discard(name: str) -> None:
    """Remove a namespace from `prepare`. The overlay forgets it when its last user is gone."""
    remove_namespace(name)


def _path_of(name: str) -> Path:
    if (
        not name
        or name in (".", "..")
        or not name.isprintable()
        or "/" in name
        or len(os.fsencode(name)) > _MAX_NAME_BYTES
    ):
        raise ConfigError(f"{name!r} is not a name for a network namespace")
    return NAMED / name


@contextmanager
def _shared_directory() -> Iterator[None]:
    """Make /run/netns a mount that hands on what is mounted below it, to other mount namespaces.

    Else a namespace could not be removed while some service's mount namespace has a copy of its
    mount. The lock is the one that ip-netns(8) takes.
    """
    NAMED.mkdir(mode=0o755, exist_ok=True)
    fd = os.open(NAMED, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        flags = namespaces.MS_SHARED | namespaces.MS_REC
        try:
            namespaces.mount("", str(NAMED), flags)
        except SyscallError as error:
            # Not a mount yet.
            if error.errno != errno.EINVAL:
                raise
            namespaces.mount(str(NAMED), str(NAMED), namespaces.MS_BIND | namespaces.MS_REC)
            namespaces.mount("", str(NAMED), flags)
        yield
    finally:
        os.close(fd)


def _bind_new(path: Path) -> None:
    failures: list[OSError] = []

    def make() -> None:
        try:
            namespaces.unshare(namespaces.CLONE_NEWNET)
            namespaces.mount("/proc/thread-self/ns/net", str(path), namespaces.MS_BIND)
        except OSError as error:
            failures.append(error)

    thread = Thread(target=make, name="make-namespace")
    thread.start()
    thread.join()
    if failures:
        raise failures[0]


def _failed(what: str, error: OSError) -> SlimError:
    hint = "it takes root (CAP_SYS_ADMIN)" if error.errno in (errno.EPERM, errno.EACCES) else ""
    return SlimError(f"cannot {what}: {error.strerror}", hint=hint)
