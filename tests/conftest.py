"""Markers: what a test needs. A missing thing skips with the probe's sentence."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from slim.broker.guard import requirements
from support import capabilities
from support.compatibility import Recorder


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--compatibility",
        type=Path,
        metavar="FILE",
        help="write what came of the cases of docs/compatibility.md there",
    )


def pytest_configure(config: pytest.Config) -> None:
    # A shell starts what runs in its background with SIGINT ignored, and what we start would, too.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    path = config.getoption("--compatibility")
    if path is not None:
        config.pluginmanager.register(Recorder(path))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker in item.iter_markers():
        match marker.name:
            case "needs_root":
                _need("root", capabilities.why_no_root())
            case "needs_netns":
                _need("netns", capabilities.why_no_netns())
            case "needs_guard":
                _need("guard", requirements.why_unavailable())
            case "needs_cpython_tests":
                _need("cpython_tests", capabilities.why_no_cpython_tests())
            case "needs_program":
                for name in marker.args:
                    _need(name, capabilities.why_no_program(name))
            case _:
                pass


def _need(capability: str, why_not: str) -> None:
    if not why_not:
        return
    if capabilities.is_required(capability):
        pytest.fail(f"SLIM_REQUIRE asks for {capability}: {why_not}", pytrace=False)
    pytest.skip(why_not)
