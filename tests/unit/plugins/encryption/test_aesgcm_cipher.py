"""AES-256-GCM as admission records use it, against the published test vectors."""

from __future__ import annotations

import subprocess
import sys

import pytest

from slim.plugins.encryption import aesgcm_cipher
from slim.plugins.encryption.aesgcm_cipher import open as open_sealed
from slim.plugins.encryption.aesgcm_cipher import seal

# McGrew and Viega, "The Galois/Counter Mode of Operation", appendix B, test case 16.
KEY = bytes.fromhex("feffe9928665731c6d6a8f9467308308" * 2)
NONCE = bytes.fromhex("cafebabefacedbaddecaf888")
PLAINTEXT = bytes.fromhex(
    "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72"
    "1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39"
)
ASSOCIATED = bytes.fromhex("feedfacedeadbeeffeedfacedeadbeefabaddad2")
SEALED = bytes.fromhex(
    "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa"
    "8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662"
    "76fc6ece0f4e1768cddf8853bb2d551b"
)


def test_sealing_gives_the_published_ciphertext_and_tag() -> None:
    assert seal(KEY, NONCE, PLAINTEXT, ASSOCIATED) == SEALED


def test_opening_gives_the_plaintext_back() -> None:
    assert open_sealed(KEY, NONCE, SEALED, ASSOCIATED) == PLAINTEXT


@pytest.mark.parametrize("changed", ["key", "nonce", "sealed", "associated"])
def test_one_changed_bit_anywhere_does_not_open(changed: str) -> None:
    right = {"key": KEY, "nonce": NONCE, "sealed": SEALED, "associated": ASSOCIATED}
    for bit in range(0, 8 * len(right[changed]), 5):
        wrong = bytearray(right[changed])
        wrong[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ValueError):
            open_sealed(**right | {changed: bytes(wrong)})


@pytest.mark.parametrize("length", [0, 1, 15, 16, len(SEALED) - 1])
def test_a_truncated_record_does_not_open(length: int) -> None:
    with pytest.raises(ValueError):
        open_sealed(KEY, NONCE, SEALED[:length], ASSOCIATED)


@pytest.mark.parametrize("length", [0, 16, 24, 31, 33])
def test_keys_of_other_lengths_are_refused(length: int) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        seal(bytes(length), NONCE, PLAINTEXT, ASSOCIATED)
    with pytest.raises(ValueError, match="32 bytes"):
        open_sealed(bytes(length), NONCE, SEALED, ASSOCIATED)


@pytest.mark.parametrize("length", [0, 8, 11, 13, 16])
def test_nonces_of_other_lengths_are_refused(length: int) -> None:
    with pytest.raises(ValueError, match="12 bytes"):
        seal(KEY, bytes(length), PLAINTEXT, ASSOCIATED)
    with pytest.raises(ValueError, match="12 bytes"):
        open_sealed(KEY, bytes(length), SEALED, ASSOCIATED)


def test_the_number_of_kept_keys_is_bounded() -> None:
    for number in range(aesgcm_cipher.MAX_CIPHERS + 10):
        seal(number.to_bytes(32), NONCE, b"", b"")
    assert aesgcm_cipher._cipher.cache_info().currsize == aesgcm_cipher.MAX_CIPHERS


def test_importing_it_imports_neither_the_plugin_manager_nor_pluggy() -> None:
    program = (
        f"import sys, {aesgcm_cipher.__name__}\n"
        "print([m for m in sys.modules if m == 'pluggy' or m.startswith('slim.broker')])"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert found.stdout.strip() == b"[]"
