"""The benchmark's own load program, rr.c, as programs of the lab: one for each of its modes."""

from __future__ import annotations

import atexit
import functools
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lab.commands import run
from lab.loads import Load, Result
from lab.programs import Server, start_server

from slim.broker.endpoints import Endpoint
from slim.broker.errors import SlimError

if TYPE_CHECKING:
    from lab.places import Place

SOURCE = Path(__file__).with_name("rr.c")


@dataclass(frozen=True, slots=True)
class Echo:
    """`mode` is rr's: stream, echo or crr."""

    name: str
    mode: str
    unit: str
    port: int = 5201
    requires: tuple[str, ...] = ("cc",)

    def start(self, place: Place, directory: Path, core: int | None) -> Server:
        endpoint = Endpoint(place.address, self.port)
        argv = (str(build()), "serve", str(place.address), str(self.port))
        return start_server(self.name, place, argv, endpoint, directory, core)

    def load(self, server: Endpoint, seconds: int, rate: float | None) -> Load:
        argv = (str(build()), self.mode, str(server.address), str(server.port), str(seconds))
        return Load(argv=argv, parse=parse)


@functools.cache
def build() -> Path:
    """Compile rr, once; it is removed when the interpreter ends."""
    directory = Path(tempfile.mkdtemp(prefix="slim-bench-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    binary = directory / "rr"
    run("cc", "-std=gnu11", "-O2", "-static", "-o", str(binary), str(SOURCE), timeout_s=60)
    return binary


def parse(output: str) -> Result:
    """Read rr's lines, `name value`."""
    found = re.findall(r"^(\w+) (\d+\.\d+)$", output, re.MULTILINE)
    numbers = {name: float(value) for name, value in found}
    if numbers.get("rate", 0.0) <= 0:
        raise SlimError(f"rr printed no result: {output.strip()[-500:] or 'nothing at all'}")
    return Result(rate=numbers.pop("rate"), extra=numbers)
