"""Two hosts and their containers as network namespaces, joined by veth and a VXLAN overlay.

    container --veth-- bridge + VXLAN [host a] --veth, the underlay-- [host b] ...

Names hold our process id, so that labs may run side by side. The underlay's links are made inside
the namespaces: nothing of the lab is ever seen in the machine's own one.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network, ip_interface
from pathlib import Path
from typing import TYPE_CHECKING, Self

from lab.commands import find_missing, run
from lab.places import Place, enter_network
from slim.broker.errors import SlimError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType, TracebackType

    from slim.broker.endpoints import Address

UNDERLAY4 = IPv4Network("192.168.77.0/24")
UNDERLAY6 = IPv6Network("fd00:77::/64")
OVERLAY4 = IPv4Network("10.77.0.0/16")
OVERLAY6 = IPv6Network("fd77::/48")
OVERLAY_MTU = 1450
"""1500 less the outer IPv4, UDP, VXLAN and inner Ethernet headers (RFC 7348)."""
VXLAN_ID = 42
VXLAN_PORT = 4789
FIRST_CONTAINER = 2
INTERRUPTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_numbers = itertools.count()


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """A network namespace on the overlay; its only link is eth0."""

    netns: str
    address4: Address
    address6: Address

    def place(self) -> Place:
        return Place(name=self.netns, address=self.address4, prefix=enter_network(self.netns))


@dataclass(slots=True, kw_only=True, eq=False)
class Host:
    """A namespace that plays a machine; `directory` is its part of the lab's temporary files."""

    name: str
    netns: str
    index: int
    address4: Address
    address6: Address
    directory: Path
    containers: list[Container] = field(default_factory=list)

    def place(self) -> Place:
        return Place(name=self.netns, address=self.address4, prefix=enter_network(self.netns))


class Lab:
    """The namespaces and a temporary directory; a context manager that removes all of it."""

    def __init__(self) -> None:
        self._prefix = f"slim-{os.getpid()}-{next(_numbers)}"
        self._namespaces: list[str] = []
        self.directory = Path()
        self.hosts: dict[str, Host] = {}

    def __enter__(self) -> Self:
        _check_machine()
        self.directory = Path(tempfile.mkdtemp(prefix=f"{self._prefix}-"))
        try:
            # Servers that are not root find their own directories below this one.
            self.directory.chmod(0o711)
            self._make_hosts()
            self._make_overlay()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def add_container(self, host: Host) -> Container:
        """A new container on the host, attached to the overlay."""
        number = FIRST_CONTAINER + len(host.containers)
        offset = (host.index << 8) + number
        container = Container(
            netns=f"{host.netns}-{number}",
            address4=OVERLAY4[offset],
            # The subnet of a host is a /64: fd77:0:0:1::/64 and fd77:0:0:2::/64.
            address6=OVERLAY6[(host.index << 64) + number],
        )
        self._add_namespace(container.netns)
        port = f"veth{number}"
        mtu = str(OVERLAY_MTU)
        ip(
            container.netns,
            "link",
            "add",
            "eth0",
            "type",
            "veth",
            "peer",
            port,
            "netns",
            host.netns,
        )
        ip(host.netns, "link", "set", port, "master", "br0", "mtu", mtu, "up")
        _set_addresses(
            container.netns,
            "eth0",
            f"{container.address4}/{OVERLAY4.prefixlen}",
            f"{container.address6}/{OVERLAY6.prefixlen}",
        )
        ip(container.netns, "link", "set", "eth0", "mtu", mtu, "up")
        host.containers.append(container)
        return container

    def close(self) -> None:
        """End what still runs in the namespaces, remove them and the directory; may be repeated."""
        with uninterrupted():
            for namespace in reversed(self._namespaces):
                _end_processes(namespace)
                # An interrupt may have come before the namespace was there.
                with contextlib.suppress(SlimError):
                    run("ip", "netns", "delete", namespace)
            self._namespaces.clear()
            self.hosts.clear()
            if self.directory != Path():
                shutil.rmtree(self.directory, ignore_errors=True)

    def _make_hosts(self) -> None:
        for index, name in enumerate(("a", "b"), start=1):
            directory = self.directory / name
            directory.mkdir(mode=0o711)
            host = Host(
                name=name,
                netns=f"{self._prefix}-{name}",
                index=index,
                address4=UNDERLAY4[index],
                address6=UNDERLAY6[index],
                directory=directory,
            )
            self.hosts[name] = host
            self._add_namespace(host.netns)
        first, second = self.hosts.values()
        ip(
            first.netns,
            "link",
            "add",
            "eth0",
            "type",
            "veth",
            "peer",
            "eth0",
            "netns",
            second.netns,
        )
        for host in self.hosts.values():
            _set_addresses(
                host.netns,
                "eth0",
                f"{host.address4}/{UNDERLAY4.prefixlen}",
                f"{host.address6}/{UNDERLAY6.prefixlen}",
            )
            ip(host.netns, "link", "set", "eth0", "up")

    def _make_overlay(self) -> None:
        """One bridge and one VXLAN link on each host; the containers are its ports."""
        first, second = self.hosts.values()
        for host, other in ((first, second), (second, first)):
            ip(host.netns, "link", "add", "br0", "type", "bridge", "mcast_snooping", "0")
            vxlan = ("type", "vxlan", "id", str(VXLAN_ID), "dstport", str(VXLAN_PORT))
            ends = ("local", str(host.address4), "remote", str(other.address4))
            ip(host.netns, "link", "add", "vxlan0", *vxlan, *ends)
            ip(host.netns, "link", "set", "vxlan0", "master", "br0", "mtu", str(OVERLAY_MTU), "up")
            ip(host.netns, "link", "set", "br0", "up")

    def _add_namespace(self, name: str) -> None:
        self._namespaces.append(name)
        run("ip", "netns", "add", name)
        ip(name, "link", "set", "lo", "up")


def ip(namespace: str, *words: str) -> None:
    """ip(8) on the named namespace."""
    run("ip", "-n", namespace, *words)


def interrupt_on_signals() -> None:
    """Let every signal that asks us to end unwind the stack, as Ctrl-C does."""
    for number in INTERRUPTS:
        signal.signal(number, _interrupt)


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Ignore interrupts, so that a second Ctrl-C does not stop the clean-up half way."""
    ignored = {number: signal.signal(number, signal.SIG_IGN) for number in INTERRUPTS}
    try:
        yield
    finally:
        for number, handler in ignored.items():
            signal.signal(number, handler)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _set_addresses(namespace: str, link: str, *addresses: str) -> None:
    for address in addresses:
        # Without duplicate address detection an IPv6 address can be used at once.
        nodad = ("nodad",) if ip_interface(address).version == 6 else ()
        ip(namespace, "address", "add", address, "dev", link, *nodad)


def _end_processes(namespace: str) -> None:
    """Kill what is left in a namespace of ours: a broker that outlived its stop, say."""
    for _ in range(50):
        try:
            pids = run("ip", "netns", "pids", namespace).split()
        except SlimError:
            return
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        if not pids:
            return
        time.sleep(0.02)


def _check_machine() -> None:
    if os.geteuid() != 0:
        raise SlimError(
            "making network namespaces needs root", hint="run this as root, for example with sudo"
        )
    missing = find_missing(("ip", "nsenter", "unshare", "mount", "setpriv", "taskset"))
    if missing:
        raise SlimError(
            f"not installed: {', '.join(missing)}", hint="apt-get install iproute2 util-linux"
        )
    try:
        subprocess.run(["ip", "netns", "list"], check=True, capture_output=True, timeout=10)
    except (subprocess.SubprocessError, OSError) as error:
        raise SlimError(f"`ip netns` does not work here: {error}") from None
