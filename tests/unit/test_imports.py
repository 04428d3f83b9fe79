"""Who may import whom: the directions that keep the layers apart, read from the sources.

Imports for type checking count too: what a module names, it knows of.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OURS = ("slim.broker", "slim.plugins")

# What decides. Beside each other, and nothing that acts: of kernel/ only types and constants.
PURE = {"endpoints", "errors", "decisions", "actions", "calls", "flows", "pipeline", "shaping"}
PURE_MAY = {
    *PURE,
    # Records that flows and actions name.
    "connections",
    "listeners",
    "kernel.sockaddr",
    # calls.decode is the one reader of target memory.
    "kernel.process_memory",
    "kernel.pacing",
    "kernel.seccomp_notify",
    "kernel.call_numbers",
    "kernel.trapped_calls",
    "kernel.socket_options",
}

TRAPS_SIDE = {
    "traps",
    "trapping",
    "attempts",
    "connecting",
    "accepting",
    "listening",
    "perform",
    "supervisor",
    "loop",
    "context",
    "traps_links",
    "workloads",
    "keeper",
    "slots",
    "connections",
    "listeners",
    "admission",
    "pipeline",
    "calls",
    "flows",
}
CONTROL_SIDE = {
    "control",
    "control_links",
    "resolver",
    "inbound",
    "registry",
    "plugin_manager",
    "plugin_api",
    "discovery",
    "peers",
    "admin",
    "config",
    "overlay",
    "cli",
    "run",
    "run_server",
    "oci",
    "claims",
    "connection_news",
    "observing",
    "conversations",
    "daemon",
    "paths",
    "admission_keys",
    "control_admin",
    "cutting",
    "enforcing",
    "shaping_rules",
    "discovery_choice",
    "judging",
    "rechecking",
    "reload",
    "revocation",
    "sources",
    "systemd",
    "watching",
}
SLOW_TO_IMPORT = {"asyncio", "pluggy", "ssl", "pyroute2", "pyseccomp"}

CLI_MAY = {
    "cli",
    "admin",
    "events",
    "config",
    "errors",
    "endpoints",
    "guard.requirements",
    "queues",
    "kernel",
    "oci.install",
    "exporter",
    "oci.profile",
    "overlay",
    "peers.pki",
}
GUARD_MAY = {"errors", "endpoints", "guard", "kernel"}
RUN_MAY = {"errors", "endpoints", "kernel", "local", "run"}
KERNEL_MAY = {"errors", "endpoints", "kernel"}


def modules_below(directory: Path, package: str) -> dict[str, Path]:
    """Module names below the package, `kernel.libc`, and their files."""
    names = {}
    for file in directory.rglob("*.py"):
        parts = file.relative_to(directory).with_suffix("").parts
        names[".".join(part for part in parts if part != "__init__")] = file
    assert len(names) > 3, f"{package} was not found"
    return names


BROKER = modules_below(ROOT / "broker", "slim.broker")
PLUGINS = modules_below(ROOT / "plugins", "slim.plugins")


def imports_of(file: Path) -> set[str]:
    """Absolute names of the modules that a file imports."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} has a relative import"
            origin = node.module or ""
            for alias in node.names:
                name = f"{origin}.{alias.name}"
                inner = name.removeprefix("slim.broker.")
                found.add(name if name != inner and inner in BROKER else origin)
    return found


def ours(file: Path) -> set[str]:
    """Modules of the broker that a file imports, without the package's name."""
    names = {name for name in imports_of(file) if name.startswith(OURS)}
    foreign = {name for name in names if not name.startswith("slim.broker.")}
    assert not foreign, f"{file} imports {foreign}"
    return {name.removeprefix("slim.broker.") for name in names}


def within(name: str, allowed: set[str]) -> bool:
    """Whether a module or a package above it is in the set."""
    parts = name.split(".")
    return any(".".join(parts[:count]) in allowed for count in range(1, len(parts) + 1))


def package(*names: str) -> list[str]:
    return sorted(name for name in BROKER if within(name, set(names)))


@pytest.mark.parametrize("name", package("kernel"))
def test_kernel_knows_only_errors_and_endpoints(name: str) -> None:
    assert {other for other in ours(BROKER[name]) if not within(other, KERNEL_MAY)} == set()


@pytest.mark.parametrize("name", sorted(PURE))
def test_what_decides_imports_nothing_that_acts(name: str) -> None:
    assert ours(BROKER[name]) - PURE_MAY == set()
    assert imports_of(BROKER[name]) & (SLOW_TO_IMPORT | {"subprocess", "threading"}) == set()


@pytest.mark.parametrize("name", package(*TRAPS_SIDE))
def test_traps_knows_nothing_of_control(name: str) -> None:
    assert {other for other in ours(BROKER[name]) if within(other, CONTROL_SIDE)} == set()
    top_level = {other.partition(".")[0] for other in imports_of(BROKER[name])}
    assert top_level & SLOW_TO_IMPORT == set()


@pytest.mark.parametrize("entry", ["traps", "keeper"])
def test_nothing_of_control_is_imported_by_a_detour(entry: str) -> None:
    seen, todo = set(), [entry]
    while todo:
        name = todo.pop()
        if name not in seen and name in BROKER:
            seen.add(name)
            todo += ours(BROKER[name])
    assert len(seen) > 3
    assert {name for name in seen if within(name, CONTROL_SIDE)} == set()
    for name in seen:
        top_level = {other.partition(".")[0] for other in imports_of(BROKER[name])}
        assert top_level & SLOW_TO_IMPORT == set(), name


@pytest.mark.parametrize("name", package("cli"))
def test_the_command_line_is_a_client(name: str) -> None:
    assert {other for other in ours(BROKER[name]) if not within(other, CLI_MAY)} == set()


@pytest.mark.parametrize("name", package("run"))
def test_slim_run_stays_small(name: str) -> None:
    assert {other for other in ours(BROKER[name]) if not within(other, RUN_MAY)} == set()


@pytest.mark.parametrize("name", package("guard"))
def test_the_guard_stands_alone(name: str) -> None:
    assert {other for other in ours(BROKER[name]) if not within(other, GUARD_MAY)} == set()


@pytest.mark.parametrize("name", sorted(PLUGINS))
def test_plugins_import_the_plugin_api_only(name: str) -> None:
    names = {other for other in imports_of(PLUGINS[name]) if other.startswith("slim")}
    # A plugin that is a package imports its own modules, too.
    own = ".".join(("slim.plugins", *name.split(".")[:2])) + "."
    allowed = {"slim.broker.plugin_api"}
    if "commands" in name:
        allowed.add("slim.broker.command_api")
    assert {other for other in names if not other.startswith(own)} <= allowed


def test_every_named_module_exists() -> None:
    for names in (PURE, PURE_MAY, TRAPS_SIDE, CONTROL_SIDE, CLI_MAY, RUN_MAY, KERNEL_MAY):
        assert [name for name in names if name not in BROKER] == []


@pytest.mark.parametrize("name", sorted(BROKER))
def test_ctypes_is_used_in_kernel_only(name: str) -> None:
    assert within(name, {"kernel"}) or "ctypes" not in imports_of(BROKER[name])
