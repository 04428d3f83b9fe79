"""What this machine can do: the one place that decides what can run here, and why not.

Each probe gives an empty string, or a sentence that says what is missing. SLIM_REQUIRE, a list of
capabilities or `all`, turns the skips into failures.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path

# Debian keeps these out of PATH, one directory per version.
_VERSIONED = "/usr/lib/postgresql/*/bin"


@cache
def why_no_root() -> str:
    """Root in the initial user namespace."""
    if os.geteuid() != 0:
        return "this needs root"
    with open("/proc/self/uid_map") as mapping:
        fields = mapping.read().split()
    if fields[:2] != ["0", "0"]:
        return "this needs root in the initial user namespace"
    return ""


@cache
def why_no_netns() -> str:
    """Whether named network namespaces, veth and VXLAN links can be made."""
    if os.geteuid() != 0:
        return "making network namespaces needs root"
    missing = [name for name in ("ip", "nsenter", "unshare", "mount", "sh") if not find(name)]
    if missing:
        return f"not installed: {', '.join(missing)}"
    script = (
        "ip link add v0 type veth peer name v1 && ip link add br0 type bridge && "
        "ip link add x0 type vxlan id 7 local 127.0.0.1 remote 127.0.0.2 dstport 4789"
    )
    done = subprocess.run(
        ["unshare", "--net", "--mount", "sh", "-c", script], capture_output=True, text=True
    )
    if done.returncode:
        return f"no veth, bridge and VXLAN links here: {done.stderr.strip()}"
    return ""


@cache
def why_no_cpython_tests() -> str:
    """Whether our interpreter has its own tests, the package `test`; distributions split it off."""
    try:
        found = find_spec("test.test_socketserver")
    except ImportError:
        found = None
    if found is None:
        return f"{sys.executable} has no tests of its own (Debian: libpython3.11-testsuite)"
    return ""


def why_no_program(name: str) -> str:
    return "" if find(name) else f"{name} is not installed"


@cache
def find(name: str) -> str:
    """Path of a program; empty when there is none."""
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin:/usr/local/go/bin")
    if found is None:
        versions = sorted(Path("/").glob(f"{_VERSIONED.lstrip('/')}/{name}"))
        found = str(versions[-1]) if versions else ""
    return found


def is_required(capability: str) -> bool:
    """Whether SLIM_REQUIRE turns a skip for want of this into a failure."""
    required = {word.strip() for word in os.environ.get("SLIM_REQUIRE", "").split(",")}
    return "all" in required or capability in required
