"""Runs one probe: `python -m support.probes MODULE FUNCTION JSON-ARGUMENTS`."""

from __future__ import annotations

import importlib
import json
import signal
import sys

LIMIT_S = 60


def main() -> None:
    module, name, arguments = sys.argv[1:]
    # Nothing that a test started may outlive it for long.
    signal.alarm(LIMIT_S)
    result = getattr(importlib.import_module(module), name)(*json.loads(arguments))
    print(json.dumps(result), flush=True)


main()
