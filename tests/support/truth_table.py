"""The NetworkPolicy truth table of tests/data/policy: cases, steps, pods and expected verdicts."""

from __future__ import annotations

import functools
import gzip
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

FILE = Path(__file__).resolve().parents[1] / "data" / "policy" / "cyclonus-cases.json.gz"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pod:
    namespace: str
    name: str
    labels: dict[str, str]
    address: str
    ports: dict[tuple[str, str], int]
    """(protocol, name) -> number."""


class Row(NamedTuple):
    source: str
    destination: str
    port: int
    protocol: str
    ingress: bool
    egress: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    documents: list[dict[str, Any]]
    """Policies and namespaces."""
    pods: dict[str, Pod]
    """By `namespace/name`."""
    rows: list[Row]
    """Without those from a pod to itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    number: int
    description: str
    tags: frozenset[str]
    steps: list[Step]


@functools.cache
def cases() -> tuple[Case, ...]:
    raw = json.loads(gzip.decompress(FILE.read_bytes()))
    return tuple(
        Case(
            number=case["id"],
            description=case["description"],
            tags=frozenset(case["tags"]),
            steps=[_step(step) for step in case["steps"]],
        )
        for case in raw["cases"]
    )


def as_document(step: Step) -> bytes:
    """All of a step's documents as one file; JSON is YAML."""
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": step.documents}).encode()


def _step(raw: dict[str, Any]) -> Step:
    # Some policies come without what kind they are.
    kind = {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy"}
    return Step(
        documents=[
            *({**kind, **policy} for policy in raw["policies"]),
            *_namespaces(raw["resources"]["namespaces"]),
        ],
        pods={f"{pod['namespace']}/{pod['name']}": _pod(pod) for pod in raw["resources"]["pods"]},
        rows=[
            Row(row[0], row[1], row[2], row[3], bool(row[4]), bool(row[5]))
            for row in raw["flows"]
            if row[0] != row[1]
        ],
    )


def _namespaces(raw: dict[str, dict[str, str]]) -> Iterator[dict[str, Any]]:
    for name, labels in raw.items():
        metadata = {"name": name, "labels": labels}
        yield {"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}


def _pod(raw: dict[str, Any]) -> Pod:
    return Pod(
        namespace=raw["namespace"],
        name=raw["name"],
        labels=raw["labels"],
        address=raw["ip"],
        ports={(port["protocol"], port["name"]): port["port"] for port in raw["ports"]},
    )
