"""Reading what the load tools print."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from bench import echo
from lab import loads

from slim.broker.errors import SlimError

if TYPE_CHECKING:
    from collections.abc import Callable

    from lab.loads import Result

WRK = """\
Running 2s test @ http://10.77.2.2:8080/page
  1 threads and 16 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency   342.01us  103.81us   3.05ms   87.02%
    Req/Sec    46.25k     4.91k   52.27k    76.19%
  Latency Distribution
     50%  320.00us
     75%  365.00us
     90%  0.44ms
     99%  1.25ms
  96668 requests in 2.10s, 115.33MB read
Requests/sec:  46032.87
Transfer/sec:     54.92MB
"""
MEMCASLAP = """\
servers : 10.77.2.2:11211
threads count: 1
concurrency: 16
cmd_get: 76321
Run time: 2.0s Ops: 84818 TPS: 42402 Net_rate: 44.3M/s
"""
REDIS = """\
"test","rps","avg_latency_ms","min_latency_ms","p50_latency_ms","p95_latency_ms"\
,"p99_latency_ms","max_latency_ms"
"GET","67204.30","0.128","0.040","0.119","0.191","0.303","1.023"
"""
PGBENCH = """\
pgbench (15.18 (Debian 15.18-0+deb12u1))
transaction type: <builtin: select only>
number of transactions actually processed: 36324
number of failed transactions: 0 (0.000%)
latency average = 0.220 ms
initial connection time = 7.155 ms
tps = 18162.482061 (without initial connection time)
"""
CRR = """\
rate 1184.500
connect_p50_us 677.010
p50_us 830.250
"""


def test_wrk_gives_rate_and_percentiles_in_microseconds() -> None:
    result = loads.parse_wrk(WRK)
    assert result.rate == 46032.87
    assert result.extra == {"p50_us": 320.0, "p99_us": 1250.0}


@pytest.mark.parametrize(
    "problem",
    [
        "  Socket errors: connect 3, read 0, write 0, timeout 0\n",
        "  Non-2xx or 3xx responses: 12\n",
    ],
)
def test_wrk_with_errors_is_no_result(problem: str) -> None:
    with pytest.raises(SlimError, match=problem.split(":")[0].strip()):
        loads.parse_wrk(WRK + problem)


def test_memcaslap_gives_operations_per_second() -> None:
    assert loads.parse_memcaslap(MEMCASLAP).rate == 42402


def test_redis_benchmark_gives_rate_and_percentiles_in_microseconds() -> None:
    result = loads.parse_redis_benchmark("WARNING: no config\n" + REDIS)
    assert result.rate == 67204.30
    assert result.extra == {"p50_us": pytest.approx(119), "p99_us": pytest.approx(303)}


def test_pgbench_gives_rate_and_mean_latency() -> None:
    result = loads.parse_pgbench(PGBENCH)
    assert result.rate == 18162.482061
    assert result.extra == {"mean_us": pytest.approx(220)}


def test_pgbench_with_failed_transactions_is_no_result() -> None:
    output = PGBENCH.replace("failed transactions: 0 (0.000%)", "failed transactions: 3 (0.008%)")
    with pytest.raises(SlimError, match="failed transactions: 3"):
        loads.parse_pgbench(output)


def test_rr_gives_rate_and_every_other_line() -> None:
    result = echo.parse(CRR)
    assert result.rate == 1184.5
    assert result.extra == {"connect_p50_us": 677.01, "p50_us": 830.25}


@pytest.mark.parametrize(
    "parse",
    [
        loads.parse_wrk,
        loads.parse_memcaslap,
        loads.parse_redis_benchmark,
        loads.parse_pgbench,
        echo.parse,
    ],
)
@pytest.mark.parametrize("output", ["", "Connection refused\n"])
def test_output_without_a_result_is_an_error_that_shows_it(
    parse: Callable[[str], Result], output: str
) -> None:
    with pytest.raises(SlimError, match=output.strip() or "nothing at all"):
        parse(output)
