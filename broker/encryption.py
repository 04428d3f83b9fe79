"""Encryption of admission records: what a backend names, and what its module must offer."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EncryptionBackend:
    """An authenticated cipher with 32-byte keys, 12-byte nonces and 16-byte tags.

    `module` is importable and has two pure functions:

        seal(key: bytes, nonce: bytes, plaintext: bytes, associated: bytes) -> bytes
        open(key: bytes, nonce: bytes, sealed: bytes, associated: bytes) -> bytes

    `seal` gives ciphertext and tag, `open` the plaintext; `open` raises ValueError on any
    mismatch. The import must be quick and without side effects: every trap process does it.
    """

    name: str
    module: str
