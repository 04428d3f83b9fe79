"""The source distribution and the wheel: what is in them, and that what was built runs.

The editable installation is what runs these tests.
"""

from __future__ import annotations

import configparser
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = {
    "slimd": "slim.broker.daemon:main",
    "slim-run": "slim.broker.run.command:main",
    "slimctl": "slim.broker.cli.main:main",
    "slim-runc": "slim.broker.oci.runtime:main",
}
DOCUMENTS = ("README.md", "ARCHITECTURE.md", "SECURITY.md", "CONTRIBUTING.md", "CHANGELOG.md")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the sdist, and the wheel that was built from it."""
    directory = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", directory, ROOT],
        check=True,
        capture_output=True,
        timeout=100,
    )
    return directory


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (found,) = built.glob("*.whl")
    return found


def test_the_wheel_holds_both_packages_under_their_import_names(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    for folder in ("broker", "plugins"):
        sources = {f"slim/{path.relative_to(ROOT)}" for path in (ROOT / folder).rglob("*.py")}
        assert sources <= names
        assert f"slim/{folder}/py.typed" in names
    # A package of its own would hide other distributions of the namespace, and top-level names
    # would be second modules.
    assert "slim/__init__.py" not in names
    assert not any(name.startswith(("broker/", "plugins/", "tests/")) for name in names)


def test_the_wheel_names_the_commands_and_carries_the_licence(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        entry = next(name for name in archive.namelist() if name.endswith("entry_points.txt"))
        parser = configparser.ConfigParser()
        parser.optionxform = str  # type: ignore[assignment,method-assign]
        parser.read_string(archive.read(entry).decode())
        assert any(name.endswith("licenses/LICENSE") for name in archive.namelist())
    assert dict(parser["console_scripts"]) == SCRIPTS


def test_the_source_distribution_is_complete(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for document in (*DOCUMENTS, "LICENSE", "tox.ini", "hatch_build.py", "pyproject.toml"):
        assert document in names
    for file in (
        "broker/traps.py",
        "plugins/policy/rules.py",
        "contrib/demo/run.sh",
        "tests/run.sh",
    ):
        assert file in names


def test_what_the_wheel_installs_runs(wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / "site"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--no-deps", "--quiet", "--target", target, wheel],
        check=True,
        timeout=60,
    )
    # -P and -S keep the working directory and the editable installation out; the dependencies are
    # this environment's.
    paths = [str(target), *(path for path in sys.path if path.endswith("site-packages"))]
    code = (
        f"import sys; sys.path[:0] = {paths!r}\n"
        "import slim.broker, slim.plugins.policy.rules, slim.broker.traps, slim.broker.keeper\n"
        "from slim.broker.cli.main import main\n"
        "print(slim.broker.__file__)\n"
        "main(['--help'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-S", "-c", code],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    first, _, help_text = done.stdout.partition("\n")
    assert Path(first).is_relative_to(target)
    assert "connections" in help_text
