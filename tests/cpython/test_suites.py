"""CPython's own tests of sockets get the same results with Slim as on the plain overlay.

Each suite runs twice natively and once with Slim, in one container. What differs between the native
runs is flaky by itself: it is named, and counts if Slim's outcome is that of neither. The ordinary
run takes the quick suites; SLIM_CPYTHON=1 (tox -e cpython) takes all.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from support.cpython_suites import UNFINISHED, Suites, compare
from support.polling import eventually
from support.two_hosts import TwoHosts

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [
    pytest.mark.needs_root,
    pytest.mark.needs_netns,
    pytest.mark.needs_cpython_tests,
    pytest.mark.timeout(3600),
]

ALL = os.environ.get("SLIM_CPYTHON", "") not in ("", "0")
RUN_S = 1200.0 if ALL else 60.0
SUITES = {
    # At least so many connections of each are fast; without that the comparison proves nothing.
    "test_socketserver": 20,
    "test_ftplib": 150,
    "test_httplib": 8,
    # Unix sockets only, which must be left alone.
    "test_selectors": 0,
    "test_ssl": 80,
    "test_socket": 150,
    "test_asyncio": 100,
}
QUICK = ("test_socketserver", "test_ftplib", "test_httplib")


@pytest.fixture(scope="module")
def hosts() -> Iterator[TwoHosts]:
    with TwoHosts() as two_hosts:
        yield two_hosts


@pytest.fixture(scope="module")
def suites(hosts: TwoHosts) -> Suites:
    return Suites(hosts)


def count_fast(hosts: TwoHosts) -> int:
    return hosts.status("a").counters.get("traps_connections_fast_out", 0)


@pytest.mark.parametrize("suite", SUITES if ALL else QUICK)
def test_suite_has_the_results_of_the_plain_overlay(
    hosts: TwoHosts, suites: Suites, suite: str
) -> None:
    first = suites.run_natively(suite, RUN_S)
    second = suites.run_natively(suite, RUN_S)
    before = count_fast(hosts)
    brokered = suites.run_brokered(suite, RUN_S)

    for flaky in compare(first, second):
        print(f"{suite}: flaky on the plain overlay: {flaky}")
    for test in first.with_outcome("error", "failure", UNFINISHED):
        print(f"{suite}: fails on the plain overlay, too: {test}")
    from_both = {each.test for each in compare(second, brokered)}
    differences = [each for each in compare(first, brokered) if each.test in from_both]
    assert not differences, "\n".join([*map(str, differences), brokered.log])

    assert len(first.with_outcome("ok")) > 0.7 * len(first.with_outcome("ok", "error", "failure"))
    eventually(
        lambda: count_fast(hosts) - before >= SUITES[suite],
        f"{SUITES[suite]} connections of {suite} are fast",
    )
