"""Asks slimd: the tools' end of the admin socket (admin.server). Blocking, with a time limit."""

from __future__ import annotations

import socket
import struct
import time
from typing import TYPE_CHECKING, TypeVar

import msgspec

from slim.broker.admin import messages
from slim.broker.errors import ControlError

if TYPE_CHECKING:
    from pathlib import Path

LIMIT_S = 10.0
"""For one request and its whole answer."""

_OTHER_VERSION = "use the slimctl that was installed with this slimd"

_LENGTH = struct.Struct("!I")
_decoder: msgspec.msgpack.Decoder[messages.AdminAnswer] = msgspec.msgpack.Decoder(
    messages.AdminAnswer
)
A = TypeVar("A", bound=messages.AdminMessage)


def ask(run_dir: Path, request: messages.AdminRequest, expected: type[A]) -> A:
    """The answer to one request; ControlError, with a hint, when there is none."""
    path = run_dir / "admin.sock"
    try:
        answer = _decoder.decode(_exchange(path, msgspec.msgpack.encode(request)))
    except (FileNotFoundError, ConnectionRefusedError):
        raise ControlError(
            f"no slimd answers at {path}",
            hint="start it (slimd --config FILE), or name its run_dir with --run-dir",
        ) from None
    except PermissionError:
        raise ControlError(f"no access to {path}", hint="run slimctl as root") from None
    except TimeoutError:
        raise ControlError(
            f"slimd at {path} did not answer in {LIMIT_S:.0f} s", hint="slimd's log says why"
        ) from None
    except (BrokenPipeError, ConnectionResetError):
        # Also what a request brings that this slimd has never heard of.
        raise ControlError(
            f"slimd at {path} closed the connection",
            hint=f"slimd's log says why; {_OTHER_VERSION}",
        ) from None
    except OSError as error:
        raise ControlError(
            f"{path}: {error.strerror or error}", hint="is --run-dir slimd's run_dir?"
        ) from None
    except msgspec.DecodeError as error:
        raise ControlError(f"slimd's answer cannot be read: {error}", hint=_OTHER_VERSION) from None
    if isinstance(answer, messages.Failure):
        raise ControlError(answer.message, hint=answer.hint)
    if not isinstance(answer, expected):
        raise ControlError(
            f"slimd answered {type(request).__name__} with {type(answer).__name__}",
            hint=_OTHER_VERSION,
        )
    return answer


def _exchange(path: Path, request: bytes) -> bytes:
    deadline = time.monotonic() + LIMIT_S
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(LIMIT_S)
        sock.connect(str(path))
        sock.sendall(_LENGTH.pack(len(request)) + request)
        (length,) = _LENGTH.unpack(_receive(sock, _LENGTH.size, deadline))
        if length > messages.MAX_ANSWER:
            raise ControlError(f"slimd answers with {length} bytes", hint=_OTHER_VERSION)
        return _receive(sock, length, deadline)


def _receive(sock: socket.socket, length: int, deadline: float) -> bytes:
    data = bytearray()
    while len(data) < length:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        sock.settimeout(left)
        chunk = sock.recv(min(length - len(data), 1 << 16))
        if not chunk:
            raise ConnectionResetError
        data += chunk
    return bytes(data)
