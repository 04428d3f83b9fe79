"""Build hook: give editable installs a `slim/` directory to import from.

hatchling refuses an editable install whose sources are renamed (`broker` -> `slim.broker`)
unless a directory with the final names exists; this makes it, out of two links.
"""

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class SlimBuildHook(BuildHookInterface):  # type: ignore[type-arg]
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable":
            link_namespace(Path(self.root), ("broker", "plugins"))


def link_namespace(root: Path, folders: tuple[str, ...]) -> None:
    namespace = root / ".importroot" / "slim"
    namespace.mkdir(parents=True, exist_ok=True)
    for folder in folders:
        link = namespace / folder
        link.unlink(missing_ok=True)
        link.symlink_to(Path("..", "..", folder))
