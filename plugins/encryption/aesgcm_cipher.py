"""AES-256-GCM (NIST SP 800-38D) by `cryptography`: the pure pair that traps imports.

Imports nothing of Slim, to be quick.
"""

from __future__ import annotations

from functools import lru_cache

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY_BYTES = 32
NONCE_BYTES = 12
MAX_CIPHERS = 4096
"""Key schedules kept. Making one (2.5 us) costs as much as sealing a record (1.9 us)."""


def seal(key: bytes, nonce: bytes, plaintext: bytes, associated: bytes) -> bytes:
    """Ciphertext and tag (16 bytes more than the plaintext). No nonce twice with one key."""
    return _cipher(key).encrypt(_checked(nonce), plaintext, associated)


def open(key: bytes, nonce: bytes, sealed: bytes, associated: bytes) -> bytes:
    """The plaintext; ValueError when key, nonce, associated data or a single bit do not fit."""
    try:
        return _cipher(key).decrypt(_checked(nonce), sealed, associated)
    except InvalidTag:
        raise ValueError("the record does not open with this key") from None


@lru_cache(maxsize=MAX_CIPHERS)
def _cipher(key: bytes) -> AESGCM:
    # AESGCM takes keys of 16 and 24 bytes too, and would quietly be a weaker cipher.
    if len(key) != KEY_BYTES:
        raise ValueError(f"a key has {KEY_BYTES} bytes, not {len(key)}")
    return AESGCM(key)


def _checked(nonce: bytes) -> bytes:
    # AESGCM takes any length from 8 bytes on and would hash it down to 12.
    if len(nonce) != NONCE_BYTES:
        raise ValueError(f"a nonce has {NONCE_BYTES} bytes, not {len(nonce)}")
    return nonce
