"""The nonces of a host: none is used twice, by whoever seals."""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING

import pytest

from slim.broker.admission.nonces import Nonces

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def nonces() -> Iterator[Nonces]:
    nonces = Nonces.create()
    yield nonces
    nonces.close()


def successor(nonces: Nonces) -> Nonces:
    return Nonces(os.dup(nonces.fileno()))


def test_a_successor_counts_on_with_the_same_prefix(nonces: Nonces) -> None:
    seen = [(nonces.take(), nonces.prefix) for _ in range(3)]
    for _ in range(20):
        later = successor(nonces)
        seen.append((later.take(), later.prefix))
        later.close()
    assert seen == [(number, nonces.prefix) for number in range(1, 24)]


def test_every_store_has_a_prefix_of_its_own(nonces: Nonces) -> None:
    other = Nonces.create()
    assert other.prefix != nonces.prefix
    other.close()


def test_when_the_counter_is_used_up_the_prefix_changes(nonces: Nonces) -> None:
    os.pwrite(nonces.fileno(), struct.pack("=I", (1 << 32) - 2), 8)
    first = nonces.prefix
    assert (nonces.take(), nonces.prefix) == ((1 << 32) - 1, first)
    assert nonces.take() == 1
    assert nonces.prefix != first
    later = successor(nonces)
    assert (later.take(), later.prefix) == (2, nonces.prefix)
    later.close()
