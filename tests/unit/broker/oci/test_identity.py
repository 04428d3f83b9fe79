"""Whom metadata and annotations make a container, and when they contradict each other."""

from __future__ import annotations

import json

import pytest

from slim.broker.errors import ControlError
from slim.broker.oci.identity import CRIO_LABELS, Claimed, identify

NOBODY = Claimed(workload=None, namespace="default", labels={}, overlay=None, fail_mode="open")


@pytest.mark.parametrize("metadata", ["", " \n"])
def test_without_a_word_it_is_nobody_in_particular(metadata: str) -> None:
    assert identify(metadata, {}) == NOBODY
    assert identify(metadata, {"org.opencontainers.image.title": "nginx"}) == NOBODY


def test_metadata_of_the_profile() -> None:
    given = {
        "workload": "web",
        "namespace": "shop",
        "labels": {"app": "web"},
        "overlay": "blue",
        "fail_mode": "closed",
    }
    assert identify(json.dumps(given), {}) == Claimed(
        workload="web",
        namespace="shop",
        labels={"app": "web"},
        overlay="blue",
        fail_mode="closed",
    )


def test_annotations_of_a_container() -> None:
    given = {
        "slim.workload": "web",
        "slim.namespace": "shop",
        "slim.label.app": "web",
        "slim.label.example.org/tier": "front",
        "slim.overlay": "blue",
        "slim.fail-mode": "closed",
    }
    assert identify("", given) == Claimed(
        workload="web",
        namespace="shop",
        labels={"app": "web", "example.org/tier": "front"},
        overlay="blue",
        fail_mode="closed",
    )


@pytest.mark.parametrize(
    ("name", "namespace"),
    [
        ("io.kubernetes.cri.sandbox-name", "io.kubernetes.cri.sandbox-namespace"),
        ("io.kubernetes.pod.name", "io.kubernetes.pod.namespace"),
        ("io.kubernetes.cri-o.KubeName", "io.kubernetes.cri-o.Namespace"),
    ],
)
def test_annotations_of_kubernetes(name: str, namespace: str) -> None:
    claimed = identify("", {name: "pod-1", namespace: "shop"})
    assert (claimed.workload, claimed.namespace) == ("pod-1", "shop")


def test_labels_of_crio_without_the_kubelets_own() -> None:
    given = {"app": "web", "io.kubernetes.container.name": "POD", "empty": ""}
    assert identify("", {CRIO_LABELS: json.dumps(given)}).labels == {"app": "web"}


def test_two_sources_may_say_the_same() -> None:
    claimed = identify('{"namespace": "shop"}', {"io.kubernetes.pod.namespace": "shop"})
    assert claimed.namespace == "shop"


@pytest.mark.parametrize(
    ("metadata", "annotations"),
    [
        ({"namespace": "shop"}, {"slim.namespace": "kube-system"}),
        ({}, {"io.kubernetes.pod.namespace": "shop", "slim.namespace": "kube-system"}),
        ({}, {"io.kubernetes.pod.name": "a", "slim.workload": "b"}),
        ({"labels": {"app": "web"}}, {"slim.label.app": "admin"}),
        ({}, {CRIO_LABELS: '{"app": "web"}', "slim.label.app": "admin"}),
        ({"fail_mode": "closed"}, {"slim.fail-mode": "open"}),
        ({"overlay": "blue"}, {"slim.overlay": "green"}),
    ],
)
def test_sources_that_contradict_each_other_are_refused(
    metadata: dict[str, object], annotations: dict[str, str]
) -> None:
    with pytest.raises(ControlError, match=r" in .* and .* in "):
        identify(json.dumps(metadata), annotations)


@pytest.mark.parametrize(
    ("metadata", "annotations", "why"),
    [
        ("{", {}, "listenerMetadata .* is not understood"),
        ('{"labels": ' + "[" * 100_000, {}, "listenerMetadata .* is not understood"),
        ("[]", {}, "listenerMetadata .* is not understood"),
        ('{"label": {}}', {}, "unknown field"),
        ('{"fail_mode": "ajar"}', {}, "not understood"),
        ('{"workload": 1}', {}, "not understood"),
        ("", {"slim.fail-mode": "ajar"}, "fail-mode is 'ajar'"),
        ("", {"slim.lable.app": "web"}, "slim.lable.app is not known"),
        ("", {"slim.workload": ""}, "empty workload"),
        ("", {CRIO_LABELS: "app=web"}, "not understood"),
        ("", {CRIO_LABELS: '{"app": 1}'}, "not understood"),
    ],
)
def test_what_is_malformed_is_refused(metadata: str, annotations: dict[str, str], why: str) -> None:
    with pytest.raises(ControlError, match=why):
        identify(metadata, annotations)
