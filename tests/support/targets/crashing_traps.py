"""slimd's trap process, which kills itself at an exact point: crashing_traps.py FILE OPTIONS...

FILE, once it is there, says where: "replace_fd after 2" is right after the second exchange of a
file from then on. It is removed first: the successor runs on.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slim.broker import accepting, attempts, traps
from slim.broker.kernel import epoll_registrations, seccomp_notify

if TYPE_CHECKING:
    from collections.abc import Callable

POINTS: dict[str, tuple[Any, str]] = {
    "reply": (seccomp_notify, "reply"),
    "proceed": (seccomp_notify, "reply_continue"),
    "replace_fd": (seccomp_notify, "replace_fd"),
    "add_fd": (seccomp_notify, "add_fd"),
    "move": (epoll_registrations.RegistrationMover, "add"),
    "established": (attempts.Attempts, "_established"),
    # Between accept(2) and everything else.
    "accepted": (accepting.Acceptor, "_examine"),
}
_passed = 0


def _die_if(file: str, point: str) -> None:
    global _passed
    try:
        with open(file) as asked:
            wanted, _, count = asked.read().rpartition(" ")
    except FileNotFoundError:
        return
    if wanted != point:
        return
    _passed += 1
    if _passed == int(count):
        Path(file).unlink()
        os.kill(os.getpid(), signal.SIGKILL)


def _watched(file: str, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any, **named: Any) -> Any:
        _die_if(file, f"{name} before")
        result = function(*arguments, **named)
        _die_if(file, f"{name} after")
        return result

    return call


def main() -> None:
    file, *options = sys.argv[1:]
    for name, (owner, attribute) in POINTS.items():
        setattr(owner, attribute, _watched(file, name, getattr(owner, attribute)))
    traps.main(options)


main()
