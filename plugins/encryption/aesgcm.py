"""AES-256-GCM for admission records, the default. Its functions are in aesgcm_cipher, which traps
imports by name: that leaves the plugin manager and its imports out of traps.
"""

from __future__ import annotations

from slim.broker.plugin_api import EncryptionBackend, hookimpl


@hookimpl
def slim_encryption_backends() -> list[EncryptionBackend]:
    return [EncryptionBackend("aesgcm", "slim.plugins.encryption.aesgcm_cipher")]
