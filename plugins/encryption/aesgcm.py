"""AES-256-GCM for admission records (NIST SP 800-38D), by `cryptography`.

`seal` and `open` are pure and are what the trap process imports.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

if TYPE_CHECKING:
    from slim.broker.plugin_api import EncryptionBackend

# The key schedule costs as much as sealing a record; a host has few live keys per peer.
_cipher = lru_cache(maxsize=4096)(AESGCM)


def seal(key: bytes, nonce: bytes, plaintext: bytes, associated: bytes) -> bytes:
    """Ciphertext and tag (16 bytes more than the plaintext)."""
    return _cipher(key).encrypt(nonce, plaintext, associated)


def open(key: bytes, nonce: bytes, sealed: bytes, associated: bytes) -> bytes:
    """The plaintext; ValueError when key, nonce, associated data or a single bit do not fit."""
    try:
        return _cipher(key).decrypt(nonce, sealed, associated)
    except InvalidTag:
        raise ValueError("the record does not open with this key") from None


def slim_encryption_backends() -> list[EncryptionBackend]:
    """The backend of this module."""
    from slim.broker.plugin_api import EncryptionBackend

    return [EncryptionBackend("aesgcm", __name__)]


# Set by hand what hookimpl would: importing plugin_api here would bring pluggy into traps.
slim_encryption_backends.slim_impl = {  # type: ignore[attr-defined]
    "wrapper": False,
    "hookwrapper": False,
    "optionalhook": False,
    "tryfirst": False,
    "trylast": False,
    "specname": None,
}
