"""What the `slimctl` commands of a plugin may ask of the slimd that runs; see plugin_api.py.

Blocking, and for commands only: nothing in slimd uses it.
"""

from __future__ import annotations

from pathlib import Path

from slim.broker.admin import client, messages
from slim.broker.admin.messages import Container
from slim.broker.cli.tables import printable
from slim.broker.config_file import read_config_file
from slim.broker.errors import ConfigError
from slim.broker.plugin_settings import PluginSettings

__all__ = ["Container", "RunningSlimd", "printable"]


class RunningSlimd:
    """The slimd of a run directory. Every method raises ControlError when none answers."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir

    def settings(self) -> PluginSettings:
        """What its configuration file says to plugins now, which it may not have read yet.

        ConfigError for a mistake in the file.
        """
        status = client.ask(self._run_dir, messages.GetStatus(), messages.Status)
        file = read_config_file(Path(status.config))
        return PluginSettings(status.host, status.config, file.plugin_tables)

    def containers(self) -> list[Container]:
        return client.ask(self._run_dir, messages.GetContainers(), messages.Containers).containers

    def reload(self) -> None:
        """As SIGHUP does; ConfigError tells the mistakes, with which nothing has changed."""
        answer = client.ask(self._run_dir, messages.Reload(), messages.Reloaded)
        if answer.mistakes:
            first, *more = [
                ConfigError(printable(each.message), hint=printable(each.hint))
                for each in answer.mistakes
            ]
            raise ConfigError(first.message, hint=first.hint, more=tuple(more))
