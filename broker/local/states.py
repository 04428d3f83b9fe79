"""What slimd's processes know of what runs: kept by the keeper as `meta`, carried by messages.

Addresses are packed in 16 bytes (endpoints.packed16).
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

FailMode: TypeAlias = Literal["open", "closed"]


class TrapSettings(msgspec.Struct, frozen=True, array_like=True):
    """What traps needs of the configuration. Kept as `settings`."""

    host_addresses: list[bytes]
    host_ports: tuple[int, int]
    resolve_budget_ms: int
    connect_budget_ms: int
    flow_lifetime_s: int
    deny_errno: int
    encryption: str
    """Module with the pure functions seal and open (the encryption plugin's word)."""
    log_level: str = "info"
    guard: Literal["portable", "kernel"] = "portable"
    host: str = ""
    """The host's name in the configuration, which names what the kernel guard pins."""


class WorkloadState(msgspec.Struct, frozen=True, array_like=True):
    """What traps knows of a workload. Kept as `workload/<cookie>`, with the namespace's fd."""

    cookie: int
    name: str
    namespace: str
    labels: dict[str, str]
    overlay: str
    networks: list[tuple[bytes, int]]
    """The overlay's networks: 16 byte address, prefix length (of the family's own width). Empty
    for a bystander, which is on no overlay: all its calls go on natively."""
    addresses: list[bytes]
    """The workload's own overlay addresses."""
    index: int
    """Small and unique on the host; the synthetic uid of host sockets is derived from it."""
    isolated_ingress: bool
    isolated_egress: bool
    fail_mode: FailMode
    prepared: str | None
    mark: int = 0
    """SO_MARK of its host sockets, by which the kernel limits them together; 0: no limit."""


class ContainerState(msgspec.Struct, frozen=True, array_like=True):
    """One seccomp listener. Kept as `container/<id>`, with the listener's fd."""

    container: str
    workload: int
    pid: int
    """0 if the runtime did not say."""
    command: list[str]
    started: float
    runtime_id: str = ""
    """What an OCI runtime calls it; its further listeners (exec) come under the same id."""
