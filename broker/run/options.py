"""The command line of slim-run.

argparse and not click: there is one command, and importing click costs 30 ms of the 120 that
starting a command through slim-run may take.
"""

from __future__ import annotations

import argparse
import os
import socket

DEFAULT_RUN_DIR = "/run/slim"
PORT_LABEL = "port.slim/"
"""The same as endpoints.PORT_LABEL, which would cost the import of ipaddress."""

_DESCRIPTION = """\
Run a command with Slim: its TCP connections inside the overlay cross the host's network instead.
The command keeps slim-run's process id, and ends with its own exit status.
"""

_EPILOG = """\
exit status: the command's own; 127 if it is not found, 126 if it cannot be executed;
2 for a wrong option, 5 if slimd cannot be reached or refuses, 4 if the kernel lacks a feature.
"""


class Options(argparse.Namespace):
    """What the user asked for."""

    workload: str | None
    namespace: str
    labels: dict[str, str]
    netns: str | None
    overlay: str | None
    ip: str | None
    user: str | None
    fail_open: bool
    run_dir: str
    command: list[str]

    @property
    def wants_prepared_namespace(self) -> bool:
        """Whether slimd makes the network namespace, attached to the overlay."""
        return self.overlay is not None and self.netns is None


def parse(argv: list[str]) -> Options:
    """Read the arguments; a mistake prints the usage and exits with status 2."""
    parser = _parser()
    options = parser.parse_args(argv, namespace=Options())
    labels: dict[str, str] = {}
    for key, value in options.label:
        if labels.setdefault(key, value) != value:
            parser.error(f"label {key!r} is given twice, as {labels[key]!r} and as {value!r}")
    for name, port in options.port:
        if labels.setdefault(PORT_LABEL + name, port) != port:
            parser.error(f"port {name!r} is given twice, as {labels[PORT_LABEL + name]} and {port}")
    options.labels = labels
    if options.command[:1] == ["--"]:
        del options.command[0]
    if not options.command:
        parser.error("there is no command to run: slim-run [options] -- command [argument ...]")
    if options.ip is not None and not options.wants_prepared_namespace:
        parser.error("--ip is for a namespace that slimd makes: with --overlay, without --netns")
    return options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="slim-run",
        usage="slim-run [options] -- command [argument ...]",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--workload", type=_name, metavar="NAME", help="name of the workload, for policy")
    add(
        "--namespace",
        type=_name,
        default="default",
        metavar="NS",
        help="policy namespace of the workload, not a network namespace (default: %(default)s)",
    )
    add(
        "--label",
        type=_label,
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a label of the workload, for policy; may be repeated",
    )
    add(
        "--port",
        type=_port,
        action="append",
        default=[],
        metavar="NAME=NUMBER",
        help="what the workload calls a port of its own, for policy that names ports; the same as"
        f" --label {PORT_LABEL}NAME=NUMBER; may be repeated",
    )
    add(
        "--netns",
        type=_name,
        metavar="NAME|PATH|PID",
        help="network namespace to run in: a name under /run/netns, a path (with a /), or the"
        " process id of somebody who is in it (default: the one slim-run is started in)",
    )
    add(
        "--overlay",
        type=_name,
        metavar="NAME",
        help="the built-in overlay to use; without --netns slimd makes a namespace on it, which"
        " goes with its last process",
    )
    add("--ip", type=_address, metavar="ADDRESS", help="overlay address of that new namespace")
    add("--user", type=_name, metavar="USER", help="user, by name or number, to run as")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument(
        "--fail-open",
        dest="fail_open",
        action="store_true",
        help="without slimd run the command on the plain overlay; if slimd is lost later,"
        " connections go over the overlay",
    )
    mode.add_argument(
        "--fail-closed",
        dest="fail_open",
        action="store_false",
        help="without slimd do not start; if slimd is lost later, connections fail (default)",
    )
    add(
        "--run-dir",
        default=os.environ.get("SLIM_RUN_DIR") or DEFAULT_RUN_DIR,
        metavar="DIR",
        help="slimd's directory of sockets (default: $SLIM_RUN_DIR, else " + DEFAULT_RUN_DIR + ")",
    )
    # Everything from the first word that is no option on belongs to the command.
    add("command", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    parser.set_defaults(fail_open=False)
    return parser


def _name(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("must not be empty")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError(f"{text!r} is not UTF-8") from None
    return text


def _label(text: str) -> tuple[str, str]:
    key, separator, value = _name(text).partition("=")
    if not separator or not key:
        raise argparse.ArgumentTypeError(f"{text!r} is not key=value")
    return key, value


def _port(text: str) -> tuple[str, str]:
    name, separator, number = text.partition("=")
    # The grammar is Kubernetes' for the names of container ports (RFC 6335, 5.1).
    is_name = 0 < len(name) <= 15 and name.isascii() and name.replace("-", "").isalnum()
    if not separator or not is_name:
        raise argparse.ArgumentTypeError(f"{text!r} is not name=number, as in http=80")
    if not (number.isascii() and number.isdigit() and 0 < int(number[:6]) <= 65535):
        raise argparse.ArgumentTypeError(f"{number!r} is not a port")
    return name, str(int(number))


def _address(text: str) -> str:
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            # Importing ipaddress for one check would cost 3 ms.
            socket.inet_pton(family, text)
        except (OSError, UnicodeEncodeError):
            continue
        return text
    raise argparse.ArgumentTypeError(f"{text!r} is not an IP address")
