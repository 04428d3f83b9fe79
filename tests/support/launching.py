"""Running the slim-run command of this source tree."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

ENTRY = "import sys; from slim.broker.run.command import main; sys.exit(main())"
SLIM_RUN = [sys.executable, "-c", ENTRY]


class Launcher:
    """Runs slim-run with a run directory; `run` waits, `start` does not."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir

    def argv(self, *arguments: str) -> list[str]:
        return [*SLIM_RUN, "--run-dir", str(self.run_dir), *arguments]

    def run(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.argv(*arguments), capture_output=True, text=True, timeout=30, **options
        )

    def start(self, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.argv(*arguments),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **options,
        )
