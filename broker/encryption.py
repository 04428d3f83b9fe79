"""What an encryption backend is: how admission records are sealed (see hookspecs).

A backend names a module; traps imports it by that name, without the plugin manager, so that
module must be quick to import and its functions pure.
"""

from __future__ import annotations

from dataclasses import dataclass

KEY_BYTES = 32
NONCE_BYTES = 12
TAG_BYTES = 16


@dataclass(frozen=True, slots=True)
class EncryptionBackend:
    """A cipher for admission records.

    `module` has two pure functions of bytes:

        seal(key, nonce, plaintext, associated) -> ciphertext and tag
        open(key, nonce, sealed, associated) -> plaintext; ValueError on any mismatch

    with keys of 32 bytes, nonces of 12 and tags of 16. A nonce is never given twice for a key.
    """

    name: str
    """What the configuration calls it."""
    module: str
    """Its full name, for example `slim.plugins.encryption.aesgcm_cipher`."""
