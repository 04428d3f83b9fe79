"""Build hook: compile the kernel guard, and give editable installs a `slim/` to import from.

The guard needs clang and libbpf's headers. Without them the package is built all the same, without
the object; slimd and `slimctl doctor` then say that the kernel guard is unavailable. With
SLIM_REQUIRE_GUARD=1 in the environment a build without it fails.

hatchling refuses an editable install whose sources are renamed (`broker` -> `slim.broker`)
unless a directory with the final names exists; this makes it, out of two links.
"""

import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

GUARD_SOURCE = "kmod/guard.bpf.c"
GUARD_OBJECT = "broker/guard/guard.bpf.o"


class SlimBuildHook(BuildHookInterface):  # type: ignore[type-arg]
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        problem = compile_guard(Path(self.root))
        if not problem:
            build_data["artifacts"].append(f"/{GUARD_OBJECT}")
        elif os.environ.get("SLIM_REQUIRE_GUARD") == "1":
            raise RuntimeError(f"the kernel guard could not be compiled: {problem}")
        else:
            self.app.display_warning(f"built without the kernel guard: {problem}")
        if version == "editable":
            link_namespace(Path(self.root), ("broker", "plugins"))


def link_namespace(root: Path, folders: tuple[str, ...]) -> None:
    namespace = root / ".importroot" / "slim"
    namespace.mkdir(parents=True, exist_ok=True)
    for folder in folders:
        link = namespace / folder
        link.unlink(missing_ok=True)
        link.symlink_to(Path("..", "..", folder))


def compile_guard(root: Path) -> str:
    """An empty string, or why there is no object; an older one is taken away first."""
    target = root / GUARD_OBJECT
    target.unlink(missing_ok=True)
    clang = os.environ.get("CLANG") or shutil.which("clang")
    if not clang:
        return "clang is not installed"
    command = [
        clang,
        *("-O2", "-g", "-Wall", "-Wextra", "-Wno-unused-parameter"),
        *("-target", "bpf", "-mcpu=v3"),
        # Debian keeps <asm/types.h> here; elsewhere the directory does not exist, which is fine.
        f"-I/usr/include/{platform.machine()}-linux-gnu",
        *("-c", str(root / GUARD_SOURCE), "-o", str(target)),
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        return f"{clang}: {error.strerror}"
    if done.returncode:
        target.unlink(missing_ok=True)
        return f"{clang} failed (are libbpf's headers installed?): {done.stderr.strip()}"
    # What a debugger wants and the kernel does not; without llvm-strip the object is larger.
    strip = shutil.which("llvm-strip")
    if strip:
        subprocess.run([strip, "--strip-debug", str(target)], check=False)
    return ""
