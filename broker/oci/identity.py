"""Who a container is, for policy: from the profile's listenerMetadata and the annotations.

    listenerMetadata        {"workload":, "namespace":, "labels":, "overlay":, "fail_mode":}, each
                            optional: for every container with that profile
    slim.KEY, slim.label.*  the same, as annotations of one container
    Kubernetes, CRI         pod name, namespace and labels as containerd and CRI-O annotate them

Two sources that say different things are refused: labels are identity, and whoever may write one
of the sources must not be able to overrule another.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from slim.broker.errors import ControlError
from slim.broker.local.states import FailMode

DEFAULT_NAMESPACE = "default"
PREFIX = "slim."
LABEL_PREFIX = "slim.label."
_KEYS = ("workload", "namespace", "overlay", "fail-mode")

# What containerd's CRI plugin, CRI-O and the kubelet write.
POD_NAMES = (
    "io.kubernetes.cri.sandbox-name",
    "io.kubernetes.pod.name",
    "io.kubernetes.cri-o.KubeName",
)
POD_NAMESPACES = (
    "io.kubernetes.cri.sandbox-namespace",
    "io.kubernetes.pod.namespace",
    "io.kubernetes.cri-o.Namespace",
)
CRIO_LABELS = "io.kubernetes.cri-o.Labels"
"""A JSON object of the pod's or the container's labels, with some of the kubelet's own."""
KUBELET_LABELS = "io.kubernetes."
"""How the keys of the kubelet's own begin: they differ between the containers of a pod."""


class Metadata(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """listenerMetadata, when it is not empty."""

    workload: str | None = None
    namespace: str | None = None
    labels: dict[str, str] = {}
    overlay: str | None = None
    fail_mode: FailMode | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Claimed:
    """What all sources say together."""

    workload: str | None
    namespace: str
    labels: dict[str, str]
    overlay: str | None
    fail_mode: FailMode


@dataclass(slots=True)
class _Collected:
    """Values by key, each with the source that gave it."""

    values: dict[str, tuple[str, str]] = field(default_factory=dict)

    def say(self, key: str, value: str | None, source: str) -> None:
        if value is None:
            return
        if not value:
            raise ControlError(f"{source} gives an empty {key}")
        other, earlier = self.values.setdefault(key, (value, source))
        if other != value:
            raise ControlError(
                f"{key} is {other!r} in {earlier} and {value!r} in {source}",
                hint="let one of them say it, or both the same: it decides what policy allows",
            )

    def get(self, key: str) -> str | None:
        value = self.values.get(key)
        return None if value is None else value[0]


def identify(metadata: str, annotations: dict[str, str]) -> Claimed:
    """Put everything together; ControlError when something is malformed or contradictory."""
    words, labels = _Collected(), _Collected()
    _read_metadata(metadata, words, labels)
    for key in POD_NAMES:
        words.say("workload", annotations.get(key), f"the annotation {key}")
    for key in POD_NAMESPACES:
        words.say("namespace", annotations.get(key), f"the annotation {key}")
    _read_crio_labels(annotations, labels)
    _read_annotations(annotations, words, labels)
    fail_mode = words.get("fail-mode") or "open"
    if fail_mode not in ("open", "closed"):
        raise ControlError(
            f"the annotation {PREFIX}fail-mode is {fail_mode!r}", hint="write open or closed"
        )
    return Claimed(
        workload=words.get("workload"),
        namespace=words.get("namespace") or DEFAULT_NAMESPACE,
        labels={key: value for key, (value, _) in labels.values.items()},
        overlay=words.get("overlay"),
        fail_mode="closed" if fail_mode == "closed" else "open",
    )


def _read_metadata(raw: str, words: _Collected, labels: _Collected) -> None:
    if not raw.strip():
        return
    source = "listenerMetadata"
    try:
        given = msgspec.json.decode(raw, type=Metadata)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ControlError(
            f"{source} of the seccomp profile is not understood: {error}",
            hint="leave it out, or write a JSON object with workload, namespace, labels, overlay "
            "or fail_mode",
        ) from None
    words.say("workload", given.workload, source)
    words.say("namespace", given.namespace, source)
    words.say("overlay", given.overlay, source)
    words.say("fail-mode", given.fail_mode, source)
    for key, value in given.labels.items():
        labels.say(key, value, source)


def _read_crio_labels(annotations: dict[str, str], labels: _Collected) -> None:
    raw = annotations.get(CRIO_LABELS)
    if raw is None:
        return
    try:
        given = msgspec.json.decode(raw, type=dict[str, str])
    except (msgspec.DecodeError, RecursionError) as error:
        raise ControlError(f"the annotation {CRIO_LABELS} is not understood: {error}") from None
    for key, value in given.items():
        if not key.startswith(KUBELET_LABELS) and value:
            labels.say(key, value, f"the annotation {CRIO_LABELS}")


def _read_annotations(annotations: dict[str, str], words: _Collected, labels: _Collected) -> None:
    for annotation, value in annotations.items():
        source = f"the annotation {annotation}"
        if annotation.startswith(LABEL_PREFIX):
            labels.say(annotation.removeprefix(LABEL_PREFIX), value, source)
        elif annotation.startswith(PREFIX):
            key = annotation.removeprefix(PREFIX)
            if key not in _KEYS:
                raise ControlError(
                    f"the annotation {annotation} is not known",
                    hint="slim.workload, slim.namespace, slim.overlay, slim.fail-mode and "
                    "slim.label.NAME are",
                )
            words.say(key, value, source)
