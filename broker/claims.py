"""What holds for every claim of a container, whoever brings it: slim-run or an OCI runtime."""

from __future__ import annotations

from typing import TYPE_CHECKING

from slim.broker.endpoints import named_ports
from slim.broker.errors import ControlError, SyscallError
from slim.broker.kernel.namespaces import netns_cookie_of

if TYPE_CHECKING:
    from slim.broker.local.messages import Register

MAX_LABELS = 64
MAX_TEXT = 256


def check_claim(claim: Register) -> None:
    """ControlError unless names and labels are short and printable: peers and people see them."""
    texts = [claim.workload or "", claim.namespace, claim.overlay or "", *claim.labels]
    texts += claim.labels.values()
    if len(claim.labels) > MAX_LABELS or any(len(text) > MAX_TEXT for text in texts):
        raise ControlError(
            "names or labels are too long",
            hint=f"at most {MAX_LABELS} labels, each text at most {MAX_TEXT} characters",
        )
    if not all(text.isprintable() for text in texts):
        raise ControlError(
            "a name or a label has control characters",
            hint="use printable characters: names and labels are shown and sent to peers",
        )
    try:
        named_ports(claim.labels)
    except ValueError as error:
        raise ControlError(str(error), hint="name ports with slim-run --port http=80") from None


def workload_cookie(netns: int) -> int:
    """SO_NETNS_COOKIE behind a claimed fd, which is borrowed; ControlError if it is no network
    namespace."""
    try:
        return netns_cookie_of(netns)
    except (SyscallError, OSError) as error:
        raise ControlError(f"that is no network namespace: {error}") from None
