"""The load tools of the programs: their command lines, and how their output is read.

Every load lasts a given time, so that the processor time of its middle can be taken; only
redis-benchmark counts requests instead, so that it needs to know how fast it will be.
"""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from slim.broker.errors import SlimError

if TYPE_CHECKING:
    from collections.abc import Callable

    from slim.broker.endpoints import Endpoint

CONNECTIONS = 16
DATABASE_CONNECTIONS = 4
FIRST_REDIS_RATE = 60_000.0

_TIME_UNITS_US = {"us": 1.0, "ms": 1e3, "s": 1e6, "m": 60e6}


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a load measured: operations per second, and whatever else it tells."""

    rate: float
    extra: dict[str, float] = field(default_factory=dict)
    """Named with their unit, as p50_us."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """A command line, and what reads its output (SlimError if it is not as expected)."""

    argv: tuple[str, ...]
    parse: Callable[[str], Result]


def wrk(url: str, seconds: int) -> Load:
    argv = ("wrk", "-t", "1", "-c", str(CONNECTIONS), "-d", f"{seconds}s", "--latency", url)
    return Load(argv=argv, parse=parse_wrk)


def memcaslap(server: Endpoint, seconds: int) -> Load:
    """Nine gets to one set, values of 1 KiB: its defaults."""
    size = ("-T", "1", "-c", str(CONNECTIONS))
    argv = ("memcaslap", "-s", str(server), *size, "-t", f"{seconds}s")
    return Load(argv=argv, parse=parse_memcaslap)


def redis_benchmark(server: Endpoint, seconds: int, rate: float | None) -> Load:
    requests = max(1000, int((rate or FIRST_REDIS_RATE) * seconds))
    where = ("-h", str(server.address), "-p", str(server.port))
    amount = ("-c", str(CONNECTIONS), "-n", str(requests), "-t", "get")
    return Load(argv=("redis-benchmark", *where, *amount, "--csv"), parse=parse_redis_benchmark)


def pgbench(server: Endpoint, seconds: int, user: str) -> Load:
    """Selects only, prepared once per connection."""
    where = ("-h", str(server.address), "-p", str(server.port), "-U", user)
    size = ("-c", str(DATABASE_CONNECTIONS), "-j", "1", "-T", str(seconds))
    argv = ("pgbench", *where, *size, "-S", "-M", "prepared", "-n", "postgres")
    return Load(argv=argv, parse=parse_pgbench)


def parse_wrk(output: str) -> Result:
    rate = _number(r"^Requests/sec:\s+([\d.]+)", output, "wrk")
    errors = re.search(r"^\s*(Socket errors:.*|Non-2xx.*)$", output, re.MULTILINE)
    if errors:
        raise SlimError(f"wrk: {errors[1]}")
    extra = {}
    for percent in (50, 99):
        found = re.search(rf"^\s+{percent}%\s+([\d.]+)(us|ms|s|m)\s*$", output, re.MULTILINE)
        if found:
            extra[f"p{percent}_us"] = float(found[1]) * _TIME_UNITS_US[found[2]]
    return Result(rate=rate, extra=extra)


def parse_memcaslap(output: str) -> Result:
    return Result(rate=_number(r"^Run time:.*\bTPS: (\d+)", output, "memcaslap"))


def parse_redis_benchmark(output: str) -> Result:
    rows = list(csv.reader(line for line in output.splitlines() if line.startswith('"')))
    if len(rows) != 2 or len(rows[0]) != len(rows[1]):
        raise _unexpected("redis-benchmark", output)
    row = dict(zip(*rows, strict=True))
    try:
        latency = {"p50_us": "p50_latency_ms", "p99_us": "p99_latency_ms"}
        extra = {name: float(row[column]) * 1e3 for name, column in latency.items()}
        return Result(rate=float(row["rps"]), extra=extra)
    except (KeyError, ValueError):
        raise _unexpected("redis-benchmark", output) from None


def parse_pgbench(output: str) -> Result:
    rate = _number(r"^tps = ([\d.]+) \(without initial connection time\)", output, "pgbench")
    failed = re.search(r"^number of failed transactions: ([1-9].*)$", output, re.MULTILINE)
    if failed:
        raise SlimError(f"pgbench: failed transactions: {failed[1]}")
    average = re.search(r"^latency average = ([\d.]+) ms", output, re.MULTILINE)
    extra = {"mean_us": float(average[1]) * 1e3} if average else {}
    return Result(rate=rate, extra=extra)


def _number(pattern: str, output: str, tool: str) -> float:
    found = re.search(pattern, output, re.MULTILINE)
    if found is None or float(found[1]) <= 0:
        raise _unexpected(tool, output)
    return float(found[1])


def _unexpected(tool: str, output: str) -> SlimError:
    return SlimError(f"{tool} printed no result: {output.strip()[-500:] or 'nothing at all'}")
