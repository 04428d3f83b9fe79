"""`slim-runc`: an OCI runtime for engines that drop listenerPath, such as Docker 20.10.

It changes the seccomp section of the bundle that it is told to create, nothing else, and becomes
runc. Every other command goes straight to runc.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

from slim.broker.errors import ConfigError, SlimError
from slim.broker.oci.profile import ALLOW, MAX_BYTES, add_slim

RUNTIME = "runc"
DEFAULT_SOCKET = "/run/slim/oci.sock"
_CREATING = ("create", "run", "restore")
_TAKING_VALUES = ("--log", "--log-format", "--root", "--criu", "--rootless")
"""Options before runc's command whose value is a word of its own (runc(8))."""


def main() -> int:
    """Console script; comes back only with an error. The runtime is $SLIM_OCI_RUNTIME or runc, the
    agent's socket $SLIM_OCI_SOCKET or /run/slim/oci.sock."""
    arguments = sys.argv[1:]
    runtime = os.environ.get("SLIM_OCI_RUNTIME") or RUNTIME
    try:
        if _command(arguments) in _CREATING:
            change_bundle(_bundle(arguments), os.environ.get("SLIM_OCI_SOCKET") or DEFAULT_SOCKET)
    except SlimError as error:
        hint = f" ({error.hint})" if error.hint else ""
        print(f"slim-runc: {error.message}{hint}", file=sys.stderr)
        return error.exit_code
    try:
        os.execvp(runtime, [runtime, *arguments])
    except OSError as error:
        print(f"slim-runc: cannot run {runtime}: {error.strerror}", file=sys.stderr)
        return 127


def change_bundle(bundle: Path, socket: str) -> None:
    """Have Slim's calls trapped in the bundle's config.json; ConfigError if that cannot be."""
    path = bundle / "config.json"
    try:
        raw = path.read_bytes()
        if len(raw) > MAX_BYTES:
            raise ConfigError(f"{path} is larger than {MAX_BYTES} bytes")
        config = json.loads(raw)
        linux = config["linux"]
        section = linux.get("seccomp") or {"defaultAction": ALLOW}
        if section.get("listenerPath") == socket:
            return
        linux["seccomp"] = json.loads(add_slim(json.dumps(section).encode(), socket))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path} is no runtime configuration: {error}") from None
    fd, name = tempfile.mkstemp(dir=bundle, prefix=".config.json.")
    with os.fdopen(fd, "w") as file:
        json.dump(config, file)
        os.fchmod(fd, path.stat().st_mode & 0o777)
    Path(name).replace(path)


def _command(arguments: list[str]) -> str | None:
    position = 0
    while position < len(arguments):
        word = arguments[position]
        if not word.startswith("-"):
            return word
        position += 2 if word in _TAKING_VALUES else 1
    return None


def _bundle(arguments: list[str]) -> Path:
    for position, word in enumerate(arguments):
        if word in ("--bundle", "-b") and position + 1 < len(arguments):
            return Path(arguments[position + 1])
        for prefix in ("--bundle=", "-b="):
            if word.startswith(prefix):
                return Path(word.removeprefix(prefix))
    return Path.cwd()
