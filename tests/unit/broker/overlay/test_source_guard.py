"""The rules as text: what nft is given. What they do is tested with frames, in tests/netns."""

from __future__ import annotations

import ipaddress

import pytest

from slim.broker.errors import KernelFeatureMissing, SlimError
from slim.broker.overlay import source_guard
from slim.broker.overlay.source_guard import link_local_of


@pytest.mark.parametrize(
    ("mac", "address"),
    [
        ("02:00:00:00:00:01", "fe80::ff:fe00:1"),
        # RFC 4291, appendix A, has its interface identifier.
        ("34:56:78:9a:bc:de", "fe80::3656:78ff:fe9a:bcde"),
    ],
)
def test_the_link_local_address_of_a_mac(mac: str, address: str) -> None:
    assert link_local_of(mac) == ipaddress.IPv6Address(address)


def test_a_host_without_nft_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_guard, "_NFT", "there-is-no-nft")
    with pytest.raises(KernelFeatureMissing, match="there is no nft") as error:
        source_guard._run("", "try")
    assert "Debian: nftables" in error.value.hint


def test_what_nft_refuses_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_guard, "_NFT", "false")
    with pytest.raises(SlimError, match="cannot try: no message"):
        source_guard._run("", "try")
