"""The benchmark's own load program, rr.c, as programs of the lab: one for each of its modes."""

from __future__ import annotations

import functools
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lab.commands import find_missing, run
from lab.loads import Load, Result
from lab.programs import Server, start_server
from slim.broker.endpoints import Endpoint
from slim.broker.errors import SlimError

if TYPE_CHECKING:
    from lab.places import Place

SOURCE = Path(__file__).with_name("rr.c")
COMPILERS = ("cc", "gcc", "clang")


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
        binary = build(directory.parent)
        argv = (str(binary), "serve", str(place.address), str(self.port))
        return start_server(self.name, place, argv, endpoint, directory, core)

    def load(self, server: Endpoint, seconds: int, rate: float | None) -> Load:
        argv = (str(build()), self.mode, str(server.address), str(server.port), str(seconds))
        return Load(argv=argv, parse=parse)


def parse(output: str) -> Result:
    """Read rr's lines, `name value`."""
    values = dict(re.findall(r"^(\w+) ([\d.]+)$", output, re.MULTILINE))
    if float(values.get("rate", 0)) <= 0:
        raise SlimError(f"rr printed no result: {output.strip()[-500:] or 'nothing at all'}")
    numbers = {name: float(value) for name, value in values.items()}
    return Result(rate=numbers.pop("rate"), extra=numbers)
