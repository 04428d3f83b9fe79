"""`slimd`: reads the configuration, checks the host, and runs control in the foreground."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import resource
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from slim.broker import log as logs
from slim.broker.config import check_host_addresses, check_host_ports, load_config
from slim.broker.control import Control
from slim.broker.errors import SlimError
from slim.broker.guard.cleanup import clean_up
from slim.broker.guard.places import instance_of
from slim.broker.kernel import features
from slim.broker.kernel.namespaces import own_netns_cookie
from slim.broker.reload import check_container_limits, make_plugins

if TYPE_CHECKING:
    from collections.abc import Sequence

    from slim.broker.config import BrokerConfig

log = logging.getLogger(__name__)

DEFAULT_CONFIG = "/etc/slim/slimd.toml"


def main(arguments: Sequence[str] | None = None) -> None:
    """Console script `slimd`."""
    parser = argparse.ArgumentParser(
        prog="slimd", description="Slim's broker for this host, in the foreground."
    )
    parser.add_argument(
        "--config", type=Path, default=Path(DEFAULT_CONFIG), help=f"default: {DEFAULT_CONFIG}"
    )
    parser.add_argument(
        "--check", action="store_true", help="check the configuration and this host, then exit"
    )
    parser.add_argument(
        "--cleanup",
        action="store_true",
        help="remove what the kernel guard of this host pinned, then exit",
    )
    parser.add_argument(
        "--cut", action="store_true", help="with --cleanup: end guarded connections first"
    )
    parser.add_argument("--trace-hooks", action="store_true", help="log every hook call")
    options = parser.parse_args(arguments)
    try:
        if options.cut and not options.cleanup:
            parser.error("--cut goes with --cleanup")
        config = load_config(options.config)
        if options.cleanup:
            cut = clean_up(instance_of(config.host.name, own_netns_cookie()), cut=options.cut)
            print(f"the kernel guard is removed; {cut} guarded sockets were cut")
            return
        check_host_addresses(config)
        check_host_ports(config)
        check_container_limits(config)
        features.require()
        if options.check:
            make_plugins(config)
            print(f"{config.path}: no mistake found")
            return
        logs.configure(config.log.level, config.log.format)
        raise_file_limit()
        asyncio.run(_serve(config, trace_hooks=options.trace_hooks))
    except SlimError as error:
        for mistake in (error, *error.more):
            print(f"slimd: {mistake.message}", file=sys.stderr)
            if mistake.hint:
                print(f"  hint: {mistake.hint}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None


def raise_file_limit() -> None:
    """RLIMIT_NOFILE to its hard limit (getrlimit(2)): fds are what a broker holds."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def _serve(config: BrokerConfig, *, trace_hooks: bool) -> None:
    control = Control(config, trace_hooks=trace_hooks)
    loop = asyncio.get_running_loop()

    def on_signal() -> None:
        # The first asks, the second insists.
        loop.add_signal_handler(signal.SIGTERM, os._exit, 128 + signal.SIGTERM)
        loop.add_signal_handler(signal.SIGINT, os._exit, 128 + signal.SIGINT)
        control.stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    loop.add_signal_handler(signal.SIGHUP, control.reload_soon)
    await control.run()


if __name__ == "__main__":
    main()
