"""The few error types of Slim; everything else is a builtin exception, specialised where needed.

`SlimError` and its direct children are for people: the command line prints the message and the
hint and exits with `exit_code` (see cli.main). `SyscallError` is for programs: callers catch
`OSError` and look at `errno`.
"""

from __future__ import annotations

import errno as errno_names
import os


class SlimError(Exception):
    """Something the user can act on: what failed, on what, and `hint`, what to do about it.

    `more` are further mistakes found in the same look; each is told like this one.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "", more: tuple[SlimError, ...] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.more = more


class ConfigError(SlimError):
    """A mistake in a configuration file or on a command line."""

    exit_code = 2


class PluginError(SlimError):
    """A plugin could not be loaded, or refused its settings."""

    exit_code = 3


class KernelFeatureMissing(SlimError):
    """This kernel, or what confines us, lacks something that Slim cannot do without."""

    exit_code = 4


class ControlError(SlimError):
    """A slimd could not be reached, or answered that it will not."""

    exit_code = 5


class TargetGone(Exception):
    """The notified thread left its call (a signal, a kill): nobody waits for the answer.

    Control flow, caught only where notifications are answered.
    """


class SyscallError(OSError):
    """A system call failed; `syscall` is its name."""

    def __init__(self, syscall: str, errno: int, subject: str = "") -> None:
        name = errno_names.errorcode.get(errno, str(errno))
        text = f"{syscall}: {os.strerror(errno)} ({name})"
        super().__init__(errno, f"{text}: {subject}" if subject else text)
        self.syscall = syscall


def in_words(error: Exception) -> str:
    """Of an exception that somebody else raised: its type, and what it says."""
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
