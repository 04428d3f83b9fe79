"""What `slimctl oci install` changes on a host, as a plan: files before and after.

Nothing is edited in place where a file of Slim's own will do (podman's containers.conf.d). In
Docker's daemon.json one key is added, and taken away again; the rest stays as the operator wrote
it, but for white space.
"""

from __future__ import annotations

import difflib
import json
import os
import tempfile
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slim.broker.errors import ConfigError
from slim.broker.oci.profile import MAX_BYTES, add_slim

PODMAN_PROFILES = ("/etc/containers/seccomp.json", "/usr/share/containers/seccomp.json")
"""Where podman looks for its default profile, in this order (containers.conf(5))."""
PODMAN_CONFIGS = ("/etc/containers/containers.conf", "/usr/share/containers/containers.conf")
PODMAN_DROP_INS = "/etc/containers/containers.conf.d"
PODMAN_DROP_IN = f"{PODMAN_DROP_INS}/90-slim.conf"
"""Read after the others, in the order of the names (containers.conf(5), since podman 4)."""
PODMAN_PROFILE = "/etc/slim/seccomp-podman.json"
DOCKER_CONFIG = "/etc/docker/daemon.json"
DOCKER_RUNTIME = "slim"


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One file; None: it is not there."""

    path: Path
    before: bytes | None
    after: bytes | None

    def describe(self) -> str:
        """What changes, as a unified diff; a new file that is long in one line."""
        if self.before is None and self.after is not None and self.after.count(b"\n") > 40:
            return f"new file {self.path} ({len(self.after)} bytes)\n"
        if self.after is None:
            return f"remove {self.path}\n"
        old, new = (_lines(content) for content in (self.before, self.after))
        return "".join(
            difflib.unified_diff(
                old, new, str(self.path) if self.before is not None else "/dev/null", str(self.path)
            )
        )

    def apply(self) -> None:
        """All of the file or nothing: it is exchanged by rename(2)."""
        if self.after is None:
            self.path.unlink(missing_ok=True)
            return
        self.path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        mode = self.path.stat().st_mode & 0o777 if self.before is not None else 0o644
        fd, name = tempfile.mkstemp(dir=self.path.parent, prefix=f".{self.path.name}.")
        try:
            with os.fdopen(fd, "wb") as file:
                file.write(self.after)
                file.flush()
                os.fchmod(fd, mode)
                os.fsync(fd)
            Path(name).replace(self.path)
        except OSError:
            Path(name).unlink(missing_ok=True)
            raise


def plan_podman(root: Path, listener_path: str, metadata: str, base: Path | None) -> list[Change]:
    """Make Slim's profile the default one of podman; `root` is / but for tests."""
    profile = base if base is not None else _below(root, find_podman_profile(root))
    content = add_slim(read(profile), listener_path, metadata)
    drop_in = (
        "# Written by `slimctl oci install podman`; `slimctl oci uninstall podman` removes it.\n"
        f'[containers]\nseccomp_profile = "{PODMAN_PROFILE}"\n'
    ).encode()
    return _changes({PODMAN_PROFILE: content, PODMAN_DROP_IN: drop_in}, root)


def unplan_podman(root: Path) -> list[Change]:
    return _changes({PODMAN_DROP_IN: None, PODMAN_PROFILE: None}, root)


def plan_docker(root: Path, program: str) -> list[Change]:
    """Give Docker a runtime `slim`, which is its own with the seccomp section changed."""
    config = _docker_config(root)
    runtimes = config.setdefault("runtimes", {})
    ours = {"path": program}
    if runtimes.get(DOCKER_RUNTIME) == ours:
        return []
    if DOCKER_RUNTIME in runtimes:
        raise ConfigError(
            f"{DOCKER_CONFIG} has another runtime of the name {DOCKER_RUNTIME!r}",
            hint="rename that one, or name our program yourself: see docs/containers.md",
        )
    runtimes[DOCKER_RUNTIME] = ours
    return _changes({DOCKER_CONFIG: _encode(config)}, root)


def unplan_docker(root: Path) -> list[Change]:
    config = _docker_config(root)
    runtimes = config.get("runtimes", {})
    if DOCKER_RUNTIME not in runtimes:
        return []
    if config.get("default-runtime") == DOCKER_RUNTIME:
        raise ConfigError(
            f"{DOCKER_CONFIG}: {DOCKER_RUNTIME!r} is the default-runtime",
            hint="take that line out first: Docker does not start without its default runtime",
        )
    del runtimes[DOCKER_RUNTIME]
    if not runtimes:
        del config["runtimes"]
    return _changes({DOCKER_CONFIG: _encode(config) if config else None}, root)


def find_podman_profile(root: Path) -> Path:
    """The profile that podman uses by itself, without what we installed; inside `root`."""
    candidates = [Path(path) for path in PODMAN_PROFILES]
    drop_ins = sorted(_below(root, Path(PODMAN_DROP_INS)).glob("*.conf"))
    configs = [_below(root, Path(path)) for path in reversed(PODMAN_CONFIGS)] + drop_ins
    for config in configs:
        if config == _below(root, Path(PODMAN_DROP_IN)) or not config.exists():
            continue
        try:
            tables = tomllib.loads(read(config).decode())
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{config} is not understood: {error}") from None
        containers = tables.get("containers")
        named = containers.get("seccomp_profile") if isinstance(containers, dict) else None
        if isinstance(named, str) and named:
            # A later file has the last word.
            candidates = [Path(named)]
    for path in candidates:
        if _below(root, path).exists():
            return path
    raise ConfigError(
        f"there is no seccomp profile of podman's at {' or '.join(map(str, candidates))}",
        hint="install podman (Debian: golang-github-containers-common has the profile), or name "
        "a profile with --base",
    )


def read(path: Path) -> bytes:
    """A file of bounded size; ConfigError when it cannot be read."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    if len(content) > MAX_BYTES:
        raise ConfigError(f"{path} is larger than {MAX_BYTES} bytes")
    return content


def _docker_config(root: Path) -> dict[str, Any]:
    path = _below(root, Path(DOCKER_CONFIG))
    if not path.exists():
        return {}
    try:
        config = json.loads(read(path))
    except ValueError as error:
        raise ConfigError(f"{path} is not understood: {error}") from None
    if not isinstance(config, dict) or not isinstance(config.get("runtimes", {}), dict):
        raise ConfigError(f"{path} is not understood: objects are expected")
    return config


def _encode(config: dict[str, Any]) -> bytes:
    return json.dumps(config, indent=2).encode() + b"\n"


def _changes(wanted: dict[str, bytes | None], root: Path) -> list[Change]:
    """Those that are not as they should be."""
    changes = []
    for name, after in wanted.items():
        path = _below(root, Path(name))
        before = read(path) if path.exists() else None
        if before != after:
            changes.append(Change(path=path, before=before, after=after))
    return changes


def _below(root: Path, path: Path) -> Path:
    return root / str(path).lstrip("/")


def _lines(content: bytes | None) -> list[str]:
    return (content or b"").decode(errors="replace").splitlines(keepends=True)
