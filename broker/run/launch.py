"""The last steps, after which slim-run is the command: user, signals, environment, exec."""

from __future__ import annotations

import errno
import os
import pwd
import signal
import sys

from slim.broker.errors import SlimError

NOT_EXECUTABLE = 126
NOT_FOUND = 127


class Account:
    """Whom --user names. Looked up before there is a filter: the name service may connect."""

    def __init__(self, user: str) -> None:
        try:
            is_number = user.isascii() and user.isdigit()
            entry = pwd.getpwuid(int(user)) if is_number else pwd.getpwnam(user)
        except (KeyError, OverflowError):
            raise SlimError(
                f"there is no user {user!r}", hint="--user takes a name or number from passwd"
            ) from None
        self.name = entry.pw_name
        self.uid = entry.pw_uid
        self.gid = entry.pw_gid
        self.groups = os.getgrouplist(entry.pw_name, entry.pw_gid)

    def become(self) -> None:
        """Give up this process's identity for the account's; the environment stays as it is."""
        try:
            os.setgroups(self.groups)
            os.setresgid(self.gid, self.gid, self.gid)
            os.setresuid(self.uid, self.uid, self.uid)
        except OSError as error:
            raise SlimError(
                f"cannot become the user {self.name}: {error.strerror}",
                hint="--user takes root (CAP_SETUID and CAP_SETGID)",
            ) from None


def become_command(command: list[str]) -> SlimError:
    """Exec; comes back only with the error, whose exit status is the one that shells use.

    All fds of slim-run's own close by O_CLOEXEC. The signal mask, stdio, umask and directory were
    never changed.
    """
    environment = _environment()
    if sys.stderr is not None:
        sys.stderr.flush()
    # Python ignores these two; what slim-run was started with cannot be known any more.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    try:
        if not command[0]:
            # Python has an exception of its own for this.
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        os.execvpe(command[0], command, environment)
    except OSError as error:
        return _exec_error(command[0], error)


def _environment() -> dict[bytes, bytes]:
    """The environment as slim-run was given it.

    In the C locale Python sets LC_CTYPE in its own environment (PEP 538); /proc shows the
    environment from before that.
    """
    environment = dict(os.environb)
    try:
        with open("/proc/self/environ", "rb") as environ:
            given = environ.read().split(b"\0")
    except OSError:
        return environment
    if not any(entry.startswith(b"LC_CTYPE=") for entry in given):
        environment.pop(b"LC_CTYPE", None)
    return environment


def _exec_error(name: str, error: OSError) -> SlimError:
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        problem, status, hint = "not found", NOT_FOUND, ""
        # Not pathlib, whose import takes 6 ms.
        if "/" in name and os.path.exists(name):  # noqa: PTH110
            hint = "the file is there: the interpreter or loader that it names is not"
    else:
        problem, status, hint = error.strerror or str(error), NOT_EXECUTABLE, ""
        if error.errno == errno.ENOEXEC:
            hint = "a script must begin with #! and its interpreter"
    failure = SlimError(f"cannot run {name!r}: {problem}", hint=hint)
    failure.exit_code = status
    return failure
