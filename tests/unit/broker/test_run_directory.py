"""One slimd at a time in a run directory."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from slim.broker import run_directory
from slim.broker.errors import ControlError

if TYPE_CHECKING:
    from pathlib import Path

HOLDER = """
import asyncio, sys
from pathlib import Path
from slim.broker.run_directory import claim
lock = asyncio.run(claim(Path(sys.argv[1])))
print("claimed", flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_directory, "PATIENCE_S", 0.1)


def claim(run_dir: Path) -> int:
    return asyncio.run(run_directory.claim(run_dir))


def start_holder(run_dir: Path) -> subprocess.Popen[str]:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(run_dir)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "claimed\n"
    return holder


def test_a_claimed_directory_is_made_and_refused_to_a_second_slimd(tmp_path: Path) -> None:
    run_dir = tmp_path / "run" / "slim"
    with start_holder(run_dir) as holder:
        with pytest.raises(ControlError, match=rf"\(pid {holder.pid}\) runs in {run_dir}$"):
            claim(run_dir)
        assert holder.stdin is not None
        holder.stdin.close()
        holder.wait()
    os.close(claim(run_dir))


def test_the_claim_ends_with_a_slimd_that_is_killed(tmp_path: Path) -> None:
    with start_holder(tmp_path) as holder:
        holder.kill()
        holder.wait()
        os.close(claim(tmp_path))


def test_a_predecessor_that_stops_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_directory, "PATIENCE_S", 10)
    lock = claim(tmp_path)

    async def claim_while_the_first_stops() -> int:
        second = asyncio.create_task(run_directory.claim(tmp_path))
        await asyncio.sleep(0)
        assert not second.done()
        os.close(lock)
        return await second

    os.close(asyncio.run(claim_while_the_first_stops()))


def test_a_directory_that_cannot_be_made_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ControlError, match=r"^cannot use the directory .*/file/run: "):
        claim(tmp_path / "file" / "run")
