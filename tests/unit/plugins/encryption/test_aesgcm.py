"""The default encryption is found by its name, and its module seals."""

from __future__ import annotations

import importlib

from slim.broker.plugin_manager import Plugins


def test_it_names_a_module_that_seals_and_opens() -> None:
    backend = Plugins(entry_points=False, environ={}).encryption_backends()["aesgcm"]
    module = importlib.import_module(backend.module)
    sealed = module.seal(bytes(32), bytes(12), b"plain", b"associated")
    assert module.open(bytes(32), bytes(12), sealed, b"associated") == b"plain"
