"""Asks slimd: the tools' end of the admin socket. Blocking, with a time limit."""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING, TypeVar

import msgspec

from slim.broker.admin import messages
from slim.broker.errors import ControlError

if TYPE_CHECKING:
    from pathlib import Path

LIMIT_S = 10.0

_LENGTH = struct.Struct("!I")
_decoder: msgspec.msgpack.Decoder[messages.AdminAnswer] = msgspec.msgpack.Decoder(
    messages.AdminAnswer
)
A = TypeVar("A", bound=messages.AdminMessage)


def ask(run_dir: Path, request: messages.AdminRequest, expected: type[A]) -> A:
    """The answer to one request; ControlError, with a hint, when there is none."""
    path = run_dir / "admin.sock"
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(LIMIT_S)
            sock.connect(str(path))
            payload = msgspec.msgpack.encode(request)
            sock.sendall(_LENGTH.pack(len(payload)) + payload)
            (length,) = _LENGTH.unpack(_receive(sock, _LENGTH.size))
            if length > messages.MAX_ANSWER:
                raise ControlError(f"slimd answers with {length} bytes")
            answer = _decoder.decode(_receive(sock, length))
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
    except OSError as error:
        raise ControlError(f"{path}: {error.strerror or error}") from None
    except msgspec.DecodeError as error:
        raise ControlError(
            f"slimd's answer cannot be read: {error}",
            hint="use the slimctl that was installed with this slimd",
        ) from None
    if isinstance(answer, messages.Failure):
        raise ControlError(answer.message, hint=answer.hint)
    if not isinstance(answer, expected):
        raise ControlError(f"slimd answered with {type(answer).__name__}")
    return answer


def _receive(sock: socket.socket, length: int) -> bytes:
    data = bytearray()
    while len(data) < length:
        chunk = sock.recv(min(length - len(data), 1 << 16))
        if not chunk:
            raise ConnectionResetError("slimd closed the connection")
        data += chunk
    return bytes(data)
