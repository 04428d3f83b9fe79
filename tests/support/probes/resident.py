"""A process in a container that forks probes on request: no interpreter has to start for each.

Started with a SEQPACKET socket as standard input; the counterpart is support/residents.py. Requests
and answers are JSON, one a message:

    {"module": M, "function": F, "arguments": [...]}, with three fds   -> {"pid": P}
    {"argv": [...]}, with three fds                                    -> {"pid": P}
    {"end": P, "kill": true | false}                                   -> {"status": S}

The fds become standard input, output and error. A child leads a session of its own; it is reaped by
`end` only, so that its number is nobody else's until then, and what it started ends with it.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
import sys
import traceback
from typing import Any, NoReturn

LIMIT_S = 60
MAX_BYTES = 1 << 16


def main() -> None:
    with socket.socket(fileno=os.dup(0)) as control:
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.close(nothing)
        while True:
            message, fds, _, _ = socket.recv_fds(control, MAX_BYTES, 3)
            if not message:
                return
            request = json.loads(message)
            answer = _end(request) if "end" in request else _start(request, fds, control)
            control.send(json.dumps(answer).encode())


def _start(request: dict[str, Any], fds: list[int], control: socket.socket) -> dict[str, Any]:
    function = None
    if "module" in request:
        # Here, so that the next child has it already.
        function = getattr(importlib.import_module(request["module"]), request["function"])
    pid = os.fork()
    if pid == 0:
        control.close()
        _become(request, fds, function)
    for fd in fds:
        os.close(fd)
    return {"pid": pid}


def _become(request: dict[str, Any], fds: list[int], function: Any) -> NoReturn:
    try:
        os.setsid()
        for number, fd in enumerate(fds):
            os.dup2(fd, number)
            os.close(fd)
        # Nothing that a test started may outlive it for long.
        signal.alarm(LIMIT_S)
        if function is None:
            # Python ignores it, and a child of an exec would go on ignoring it.
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)
            os.execvp(request["argv"][0], request["argv"])
        result = function(*request["arguments"])
        print(json.dumps(result), flush=True)
        os._exit(0)
    finally:
        # Not reached unless something was raised; whatever that is, this is no resident.
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)


def _end(request: dict[str, Any]) -> dict[str, Any]:
    pid = request["end"]
    if request["kill"]:
        os.killpg(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    # The dead leader still holds the group's number.
    os.killpg(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    return {"status": os.waitstatus_to_exitcode(status)}


main()
