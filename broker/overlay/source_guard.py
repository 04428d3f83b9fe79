"""What containers may send from: their own MAC and IP addresses, in frames, in ARP and in ND.

Verdicts by address mean nothing where anybody can send from any address. For each overlay one
table of nftables, family bridge, is replaced as a whole whenever who is attached changes: what a
port sends is let through if its sets have it, and dropped if not (nft(8), RFC 826, RFC 4861).
"""

from __future__ import annotations

import ipaddress
import shutil
import subprocess
from typing import TYPE_CHECKING

from slim.broker.errors import KernelFeatureMissing, SlimError
from slim.broker.overlay.allocation import mac_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from slim.broker.endpoints import Address
    from slim.broker.overlay.settings import OverlaySettings
    from slim.broker.overlay.state import Attachment, OverlayState

LIMIT_S = 10.0
_NFT = "nft"
# Before anything that an administrator has in bridge/prerouting (NF_BR_PRI_FIRST aside).
_PRIORITY = -400
_REPORTS = "mld-listener-report, mld2-listener-report"


def guard_sources(state: OverlayState) -> None:
    """Put the table of the overlay in force, in place of what there was: one transaction.

    In the calling thread's network namespace. SlimError if nft refuses, KernelFeatureMissing if
    there is no nft.
    """
    _run(ruleset(state), f"guard what containers of overlay {state.settings.name} send from")


def remove_guard(settings: OverlaySettings) -> None:
    """Remove the table; no error if there is none."""
    table = table_of(settings)
    # Adding what is there is no error, removing what is not there is one.
    if shutil.which(_NFT) is None:
        # Nothing can have put it there, and nothing could take it away.
        return
    text = f"add table bridge {table}\ndelete table bridge {table}\n"
    _run(text, f"remove the table {table}")


def is_guarded(settings: OverlaySettings) -> bool:
    """Whether the kernel has the table: `nft flush ruleset` of a firewall takes it away."""
    words = [_NFT, "list", "chain", "bridge", table_of(settings), "prerouting"]
    try:
        done = subprocess.run(words, capture_output=True, timeout=LIMIT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0 and b"jump from_container" in done.stdout


def table_of(settings: OverlaySettings) -> str:
    return f"slim-{settings.bridge}"


def ruleset(state: OverlayState) -> str:
    """What nft -f is given for these attachments. Pure; names and addresses are our own."""
    table = table_of(state.settings)
    attached = [(one, mac_of(state.settings, one.addresses[0])) for one in state.attachments]
    own4 = [
        f'"{one.device}" . {mac} . {address}'
        for one, mac in attached
        for address in one.addresses
        if address.version == 4
    ]
    own6 = [
        f'"{one.device}" . {mac} . {address}'
        for one, mac in attached
        for address in _own6(one, mac)
    ]
    return f"""\
add table bridge {table}
delete table bridge {table}
table bridge {table} {{
	set ports {{
		type ifname
		{_elements(f'"{one.device}"' for one, _ in attached)}
	}}
	set macs {{
		type ifname . ether_addr
		{_elements(f'"{one.device}" . {mac}' for one, mac in attached)}
	}}
	set own4 {{
		type ifname . ether_addr . ipv4_addr
		{_elements(own4)}
	}}
	set own6 {{
		type ifname . ether_addr . ipv6_addr
		{_elements(own6)}
	}}
	chain prerouting {{
		type filter hook prerouting priority {_PRIORITY}; policy accept;
		iifname @ports jump from_container
	}}
	chain from_container {{
		iifname . ether saddr != @macs counter drop
		ether type arp goto arp_from_container
		ether type ip iifname . ether saddr . ip saddr @own4 accept
		ether type ip6 goto ip6_from_container
		counter drop
	}}
	chain arp_from_container {{
		arp htype 1 arp ptype ip arp plen 4 iifname . arp saddr ether . arp saddr ip @own4 accept
		# A probe for duplicates, RFC 5227: it claims nothing.
		arp operation request arp saddr ip 0.0.0.0 iifname . arp saddr ether @macs accept
		counter drop
	}}
	chain ip6_from_container {{
		icmpv6 type {{ nd-router-advert, nd-redirect }} counter drop
		icmpv6 type nd-neighbor-advert jump claims
		iifname . ether saddr . ip6 saddr @own6 accept
		# Duplicate address detection and the listener reports before it.
		ip6 saddr :: icmpv6 type {{ nd-neighbor-solicit, {_REPORTS} }} accept
		counter drop
	}}
	chain claims {{
		# The target of an advertisement.
		{_claims(attached)}
	}}
}}
"""


def _claims(attached: Iterable[tuple[Attachment, str]]) -> str:
    rules = []
    for one, mac in attached:
        targets = ", ".join(f"{int(address):#034x}" for address in _own6(one, mac))
        rules.append(f'iifname "{one.device}" @th,64,128 != {{ {targets} }} counter drop')
    return "\n\t\t".join(rules)


def _own6(attachment: Attachment, mac: str) -> list[Address]:
    """IPv6 addresses of an attachment, the link-local one that the kernel makes included."""
    return [
        *(address for address in attachment.addresses if address.version == 6),
        link_local_of(mac),
    ]


def link_local_of(mac: str) -> ipaddress.IPv6Address:
    """The address that the kernel gives to a device with that MAC: EUI-64, RFC 4291 appendix A."""
    octets = bytes(int(part, 16) for part in mac.split(":"))
    interface = bytes([octets[0] ^ 2]) + octets[1:3] + b"\xff\xfe" + octets[3:]
    return ipaddress.IPv6Address(b"\xfe\x80" + bytes(6) + interface)


def _elements(elements: Iterable[str]) -> str:
    listed = ", ".join(elements)
    return f"elements = {{ {listed} }}" if listed else ""


def _run(text: str, what: str) -> None:
    try:
        done = subprocess.run(
            [_NFT, "-f", "-"],
            input=text,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
    except FileNotFoundError:
        raise KernelFeatureMissing(
            f"cannot {what}: there is no nft",
            hint="install nftables (Debian: nftables); without it containers could send from any"
            " address of the overlay",
        ) from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SlimError(f"cannot {what}: {error}", hint="does `nft list ruleset` work?") from None
    if done.returncode:
        first = (done.stderr.strip().splitlines() or ["no message"])[0]
        raise SlimError(
            f"cannot {what}: {first}",
            hint="it takes root, and a kernel with nf_tables for bridges"
            " (CONFIG_NF_TABLES_BRIDGE, Linux 4.17)",
        )
