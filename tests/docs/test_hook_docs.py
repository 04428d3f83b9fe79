"""docs/hooks.md says what hookspecs.py says, and every hook says everything it must."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

import generate_hook_docs as generator
import pytest

from slim.broker import hookspecs, plugin_api

if TYPE_CHECKING:
    from pathlib import Path

HOOKS = [name for name in vars(hookspecs) if name.startswith("slim_")]


def test_the_page_is_what_the_generator_writes() -> None:
    assert generator.TARGET.read_text() == generator.render(), (
        "stale: run python contrib/generate_hook_docs.py"
    )


def test_the_check_fails_for_a_stale_or_missing_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "hooks.md"
    monkeypatch.setattr(generator, "TARGET", page)
    assert generator.main(["--check"]) == 1
    page.write_text("# Hooks\n")
    assert generator.main(["--check"]) == 1
    generator.main([])
    assert generator.main(["--check"]) == 0


def test_every_hook_is_in_a_section() -> None:
    assert sorted(name for _, names in generator.sections() for name in names) == sorted(HOOKS)


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_follows_the_template(hook: str) -> None:
    function = getattr(hookspecs, hook)
    when, parts = generator.docstring_parts(function)
    assert when.startswith("Called ")
    parameters = [f":param {name}" for name in inspect.signature(function).parameters]
    assert list(parts) == ["Returns", "Must", "If it raises", *parameters]
    assert all(parts.values())


def test_every_name_of_the_plugin_api_is_listed_and_exists() -> None:
    page = generator.render()
    for name in plugin_api.__all__:
        assert hasattr(plugin_api, name)
        assert f"`{name}`" in page
