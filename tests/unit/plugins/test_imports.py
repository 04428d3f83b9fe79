"""Of Slim, the plugins that ship with it import the plugin API and nothing else."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PLUGINS = Path(__file__).resolve().parents[3] / "plugins"
MODULES = sorted(PLUGINS.rglob("*.py"))


def imported(file: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} has a relative import"
            found.add(node.module or "")
    return found


@pytest.mark.parametrize("file", MODULES, ids=lambda file: str(file.relative_to(PLUGINS)))
def test_a_plugin_imports_nothing_of_ours_but_the_plugin_api(file: Path) -> None:
    ours = {name for name in imported(file) if name.partition(".")[0] in ("slim", "plugins")}
    # A plugin that is a package has modules of its own.
    parts = file.relative_to(PLUGINS).parts
    own = f"slim.plugins.{parts[0]}.{parts[1]}." if len(parts) > 2 else "-"
    assert {name for name in ours if not name.startswith(own)} <= {"slim.broker.plugin_api"}


def test_the_plugins_were_found() -> None:
    assert len(MODULES) > 5
