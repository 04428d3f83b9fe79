"""`slimctl overlay`: build and show the built-in VXLAN overlay."""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from slim.broker.cli.tables import Column, print_json, print_table
from slim.broker.endpoints import Address, Network, parse_address
from slim.broker.overlay.namespaces import open_network
from slim.broker.overlay.settings import MAX_VNI, VXLAN_PORT, OverlayRequest, Segment
from slim.broker.overlay.state import DEFAULT_STATE_DIR, StateDirectory, as_text
from slim.broker.overlay.vxlan import Overlay

if TYPE_CHECKING:
    from collections.abc import Callable

    from slim.broker.overlay.state import Attachment, OverlayState

T = TypeVar("T", Address, Network)
F = TypeVar("F", bound="Callable[..., Any]")


def read_address(text: str) -> Address:
    try:
        return parse_address(text)
    except ValueError:
        raise click.BadParameter(f"{text!r} is not an IP address") from None


def read_address4(text: str) -> Address:
    return _of_family(read_address(text), 4)


def read_address6(text: str) -> Address:
    return _of_family(read_address(text), 6)


def read_network4(text: str) -> Network:
    return _of_family(_read_network(text), 4)


def read_network6(text: str) -> Network:
    return _of_family(_read_network(text), 6)


def read_mtu(text: str) -> int | None:
    """None for `auto`."""
    if text == "auto":
        return None
    try:
        return int(text)
    except ValueError:
        raise click.BadParameter(f"{text!r} is neither auto nor a number of bytes") from None


def _read_network(text: str) -> Network:
    try:
        return ipaddress.ip_network(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def _of_family(value: T, version: int) -> T:
    if value.version != version:
        raise click.BadParameter(f"{value} is not IPv{version}")
    return value


def _netns_option(*, required: bool) -> Callable[[F], F]:
    return click.option(
        "--netns",
        required=required,
        metavar="NAME|PATH|PID",
        help="The container's network namespace: a name under /run/netns, a path (with a /), or"
        " the process id of somebody who is in it.",
    )


@click.group()
@click.option(
    "--state-dir",
    type=click.Path(path_type=Path, file_okay=False),
    default=DEFAULT_STATE_DIR,
    show_default=True,
    help="Where overlays and the addresses given out are remembered.",
)
@click.pass_context
def overlay(context: click.Context, state_dir: Path) -> None:
    """Build and show the built-in VXLAN overlay.

    On every host: create the overlay under the same name with a subnet of the host's own, join
    the other hosts, attach the containers.
    """
    context.obj = state_dir


@overlay.command()
@click.argument("name")
@click.option(
    "--network", type=read_network4, metavar="NETWORK", help="The whole overlay's IPv4 network."
)
@click.option(
    "--subnet", type=read_network4, metavar="NETWORK", help="This host's part of --network."
)
@click.option(
    "--network6", type=read_network6, metavar="NETWORK", help="The whole overlay's IPv6 network."
)
@click.option(
    "--subnet6", type=read_network6, metavar="NETWORK", help="This host's part of --network6."
)
@click.option(
    "--underlay",
    type=read_address,
    metavar="ADDRESS",
    required=True,
    help="This host's address that the other hosts send to.",
)
@click.option(
    "--vni",
    type=click.IntRange(1, MAX_VNI),
    help="Number of the overlay on the wire. Default: from its name.",
)
@click.option(
    "--mtu",
    type=read_mtu,
    metavar="auto|BYTES",
    default="auto",
    show_default=True,
    help="Of the containers' devices. auto: the underlay's, less 50 (IPv4) or 70 (IPv6).",
)
@click.option(
    "--port",
    type=click.IntRange(1, 65535),
    default=VXLAN_PORT,
    show_default=True,
    help="UDP port, the same on every host; must be open between them.",
)
@click.pass_obj
def create(
    state_dir: Path,
    /,
    name: str,
    network: Network | None,
    subnet: Network | None,
    network6: Network | None,
    subnet6: Network | None,
    **rest: Any,
) -> None:
    """Make an overlay on this host.

    Again with the same options: restore devices that are missing, as after a restart of the host.
    """
    segments = []
    for whole, part, suffix in ((network, subnet, ""), (network6, subnet6, "6")):
        if (whole is None) != (part is None):
            raise click.UsageError(f"--network{suffix} and --subnet{suffix} go together")
        if whole is not None and part is not None:
            segments.append(Segment(network=whole, subnet=part))
    request = OverlayRequest(name=name, segments=tuple(segments), **rest)
    made = Overlay.create(request, state_dir=state_dir)
    click.echo(f"overlay {name}: {made.read().settings.describe()}")


@overlay.command()
@click.argument("name")
@click.option(
    "--peer",
    type=read_address,
    metavar="ADDRESS",
    required=True,
    help="The other host's underlay address.",
)
@click.pass_obj
def join(state_dir: Path, name: str, peer: Address) -> None:
    """Reach another host's containers; over there, join this host."""
    Overlay.load(name, state_dir=state_dir).join(peer)


@overlay.command()
@click.argument("name")
@click.option(
    "--peer",
    type=read_address,
    metavar="ADDRESS",
    required=True,
    help="The other host's underlay address.",
)
@click.pass_obj
def leave(state_dir: Path, name: str, peer: Address) -> None:
    """Reach another host's containers no more."""
    Overlay.load(name, state_dir=state_dir).leave(peer)


@overlay.command()
@click.argument("name")
@_netns_option(required=True)
@click.option(
    "--ip", type=read_address4, metavar="ADDRESS", help="IPv4 address. Default: the next free one."
)
@click.option(
    "--ip6", type=read_address6, metavar="ADDRESS", help="IPv6 address. Default: the next free one."
)
@click.pass_obj
def attach(state_dir: Path, name: str, netns: str, ip: Address | None, ip6: Address | None) -> None:
    """Give a container a device; prints it and its addresses."""
    loaded = Overlay.load(name, state_dir=state_dir)
    asked = tuple(address for address in (ip, ip6) if address is not None)
    namespace = open_network(netns)
    try:
        attachment = loaded.attach(namespace, asked, label=netns)
    finally:
        os.close(namespace)
    click.echo(" ".join([attachment.interface, *map(str, attachment.addresses)]))


@overlay.command()
@click.argument("name")
@_netns_option(required=False)
@click.option(
    "--ip", type=read_address, metavar="ADDRESS", help="Instead: an address that the container has."
)
@click.pass_obj
def detach(state_dir: Path, name: str, netns: str | None, ip: Address | None) -> None:
    """Take a container off the overlay."""
    if (netns is None) == (ip is None):
        raise click.UsageError("give --netns or --ip")
    loaded = Overlay.load(name, state_dir=state_dir)
    if netns is None:
        loaded.detach(address=ip)
        return
    namespace = open_network(netns)
    try:
        loaded.detach(namespace=namespace)
    finally:
        os.close(namespace)


@overlay.command()
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON (docs/slimctl.md).")
@click.pass_obj
def show(state_dir: Path, name: str | None, as_json: bool) -> None:
    """Show the overlay NAME with its containers, or all overlays."""
    names = StateDirectory(state_dir).names() if name is None else [name]
    states = [Overlay.load(one, state_dir=state_dir).read() for one in names]
    if as_json:
        print_json("overlays", [as_text(state) for state in states])
    elif name is None:
        print_table(states, _OVERLAYS, empty="no overlay on this host")
    else:
        click.echo(f"overlay {name}: {states[0].settings.describe()}")
        click.echo(f"devices {states[0].settings.bridge}, {states[0].settings.vxlan}")
        click.echo(f"peers {', '.join(map(str, states[0].peers)) or 'none'}")
        print_table(states[0].attachments, _ATTACHMENTS, empty="no container is attached")


@overlay.command()
@click.argument("name")
@click.option("--force", is_flag=True, help="Even with containers attached; they lose it.")
@click.pass_obj
def delete(state_dir: Path, name: str, force: bool) -> None:
    """Remove the overlay from this host."""
    Overlay.load(name, state_dir=state_dir).delete(force=force)


def _subnets(state: OverlayState) -> str:
    return " ".join(str(segment.subnet) for segment in state.settings.segments)


def _addresses(attachment: Attachment) -> str:
    return " ".join(map(str, attachment.addresses))


_OVERLAYS: list[Column[OverlayState]] = [
    Column("NAME", lambda state: state.settings.name),
    Column("SUBNET", _subnets),
    Column("UNDERLAY", lambda state: str(state.settings.underlay)),
    Column("VNI", lambda state: str(state.settings.vni), right=True),
    Column("MTU", lambda state: str(state.settings.mtu), right=True),
    Column("PEERS", lambda state: str(len(state.peers)), right=True),
    Column("CONTAINERS", lambda state: str(len(state.attachments)), right=True),
]
_ATTACHMENTS: list[Column[Attachment]] = [
    Column("NAMESPACE", lambda one: one.namespace),
    Column("DEVICE", lambda one: one.interface),
    Column("ADDRESSES", _addresses),
    Column("HOST DEVICE", lambda one: one.device, from_width=80),
]
