"""Changing the policy of a running slimd: the rules of its configuration, and slimctl reload."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from slim.broker.admin import client, messages

if TYPE_CHECKING:
    from pathlib import Path

    from support.two_hosts import TwoHosts

ALLOW = '[plugins.rules]\ndefault = "allow"\n'
_MARK = "\n# rules of the test\n"


def deny(name: str, source: str, destination: str = "", *, direction: str = "ingress") -> str:
    """Rules that keep workloads with label app=`source` from others (from all: empty)."""
    to = f'destination = {{ app = "{destination}" }}\n' if destination else ""
    return (
        f'{ALLOW}[[plugins.rules.rules]]\nname = "{name}"\naction = "deny"\n'
        f'direction = "{direction}"\nsource = {{ app = "{source}" }}\n{to}'
    )


def config_file(hosts: TwoHosts, host: str) -> Path:
    return hosts.machines[host].path("/etc/slim/slimd.toml")


def write_rules(hosts: TwoHosts, host: str, rules: str) -> None:
    """Put these in the place of the rules that were written here before."""
    file = config_file(hosts, host)
    file.write_text(file.read_text().partition(_MARK)[0] + _MARK + rules)


def reload(hosts: TwoHosts, host: str) -> messages.Reloaded:
    return client.ask(hosts.run_dir(host), messages.Reload(), messages.Reloaded)


def put_in_force(hosts: TwoHosts, host: str, rules: str) -> float:
    """Write rules and reload them; the time at which slimd said that it was done."""
    write_rules(hosts, host, rules)
    answer = reload(hosts, host)
    done = time.monotonic()
    assert answer == messages.Reloaded([], [])
    return done
