"""What an encryption backend is: how admission records are sealed (see hookspecs).

A backend names a module; traps imports it by that name, without the plugin manager, so that
module must be quick to import and its functions pure.
"""

from __future__ import annotations

import importlib
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


def try_sealing(module: str) -> None:
    """Import the module and see that its functions seal; ValueError when anything opens wrongly."""
    loaded = importlib.import_module(module)
    # Wrong in one place each: key, nonce, sealed text, associated data.
    right = (bytes(KEY_BYTES), bytes(NONCE_BYTES), b"text", b"associated")
    key, nonce, text, associated = right
    sealed = loaded.seal(*right)
    if len(sealed) != len(text) + TAG_BYTES or loaded.open(key, nonce, sealed, associated) != text:
        raise ValueError("what was sealed does not open again")
    arguments = (key, nonce, sealed, associated)
    for place, argument in enumerate(arguments):
        changed = (*arguments[:place], b"\1" + argument[1:], *arguments[place + 1 :])
        try:
            loaded.open(*changed)
        except ValueError:
            continue
        raise ValueError("what was changed opens too")
