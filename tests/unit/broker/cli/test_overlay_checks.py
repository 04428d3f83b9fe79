"""doctor on overlays: one of ours is guarded, of another it says whose business that is."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

import pytest

from slim.broker.cli import overlay_checks
from slim.broker.cli.overlay_checks import check_overlay
from slim.broker.config import OverlayConfig
from slim.broker.overlay.settings import OverlayRequest, Segment, settle
from slim.broker.overlay.state import OverlayState, StateDirectory

if TYPE_CHECKING:
    from pathlib import Path

NETWORK = ipaddress.ip_network("10.77.0.0/16")
OVERLAY = OverlayConfig(name="web", networks=(NETWORK,), unverified=None)


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    """An overlay of that network, by another name than the configuration's."""
    request = OverlayRequest(
        name="built",
        segments=(Segment(network=NETWORK, subnet=ipaddress.ip_network("10.77.1.0/24")),),
        underlay=ipaddress.ip_address("192.0.2.1"),
    )
    directory = StateDirectory(tmp_path)
    with directory.lock():
        directory.save(OverlayState(settings=settle(request, 1500)))
    return tmp_path


@pytest.mark.parametrize("is_guarded", [True, False])
def test_an_overlay_of_ours(
    state_dir: Path, is_guarded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overlay_checks, "is_guarded", lambda settings: is_guarded)
    check = check_overlay(OVERLAY, state_dir)
    assert check.name == "overlay web"
    assert check.outcome == ("ok" if is_guarded else "fail")
    assert bool(check.remedy) != is_guarded
    if not is_guarded:
        assert "slim-sb-built" in check.found
        assert "slimctl overlay create built" in check.remedy


@pytest.mark.parametrize(("unverified", "told"), [("deny", '"deny"'), (None, "by policy")])
def test_an_overlay_of_somebody_else(tmp_path: Path, unverified: None, told: str) -> None:
    overlay = OverlayConfig(name="web", networks=(NETWORK,), unverified=unverified)
    check = check_overlay(overlay, tmp_path)
    assert check.outcome == "ok"
    assert "who runs it must keep containers" in check.found
    assert check.found.endswith(told)


def test_a_state_that_cannot_be_read_fails(state_dir: Path) -> None:
    (state_dir / "overlay-built.json").write_text("{")
    check = check_overlay(OVERLAY, state_dir)
    assert (check.outcome, bool(check.remedy)) == ("fail", True)
