"""Workloads as control knows them: which is which, and what a namespace may become."""

from __future__ import annotations

import ipaddress
import os
from typing import TYPE_CHECKING

import pytest

from slim.broker import registry as registry_module
from slim.broker.config import OverlayConfig
from slim.broker.decisions import Direction, Identity
from slim.broker.endpoints import Address, Endpoint, packed16, parse_address
from slim.broker.errors import ControlError
from slim.broker.local import states
from slim.broker.registry import Membership, Registry, host_endpoint
from support.brokering import FakePlugins, add_workload, listening, registry, state

if TYPE_CHECKING:
    from collections.abc import Iterator

BLUE = ipaddress.ip_network("10.1.0.0/16")
NETNS_FD = 99


class Namespace:
    """What read_addresses and pick_source find; no namespace is entered."""

    def __init__(self, *addresses: str) -> None:
        self.has = [*addresses]
        self.asked: list[Address] = []

    def read(self, _fd: int) -> list[Address]:
        return [parse_address(address) for address in self.has]

    def pick(self, _fd: int, destination: Address) -> Address | None:
        self.asked.append(destination)
        return parse_address(self.has[0]) if self.has else None


@pytest.fixture
def namespace(monkeypatch: pytest.MonkeyPatch) -> Namespace:
    namespace = Namespace("10.1.0.1", "192.168.0.1")
    monkeypatch.setattr(registry_module, "read_addresses", namespace.read)
    monkeypatch.setattr(registry_module, "pick_source", namespace.pick)
    return namespace


@pytest.fixture
def plugins() -> FakePlugins:
    return FakePlugins()


@pytest.fixture
def workloads(plugins: FakePlugins) -> Iterator[Registry]:
    made = registry(plugins, BLUE)
    yield made
    for workload in made:
        made.remove(workload)


def describe(
    workloads: Registry,
    name: str | None = "web",
    overlay: str | None = None,
    cookie: int = 7,
    membership: Membership = "required",
) -> states.WorkloadState:
    return workloads.describe_namespace(
        cookie,
        NETNS_FD,
        name=name,
        namespace="default",
        labels={"app": "web"},
        overlay=overlay,
        fail_mode="open",
        prepared=None,
        membership=membership,
    )


# --- who is who -------------------------------------------------------------------------------


def test_workloads_are_found_by_address_container_and_cookie(workloads: Registry) -> None:
    first = add_workload(workloads, state(1, "10.1.0.1", "fd00::1"))
    second = add_workload(workloads, state(2, "10.1.0.2"))
    second.containers["c2"] = states.ContainerState("c2", 2, 1, [], 0.0)
    assert workloads.by_address(parse_address("fd00::1")) is first
    assert workloads.by_address(parse_address("10.1.0.2")) is second
    assert workloads.by_address(parse_address("10.1.0.3")) is None
    assert workloads.by_container("c2") is second
    assert workloads.by_container("c1") is None
    assert first.identity == Identity("workload-1", "default", {"app": "app-1"})
    assert first.addresses == [parse_address("10.1.0.1"), parse_address("fd00::1")]


def test_the_name_of_a_workload_outlives_it(workloads: Registry) -> None:
    workload = add_workload(workloads, state(1, "10.1.0.1"))
    name = workload.state.name
    assert (workloads.name_of(1), workloads.name_of(2)) == (name, "2")
    workloads.remove(workload)
    assert workloads.name_of(1) == name


def test_removing_closes_the_namespace(workloads: Registry) -> None:
    workload = add_workload(workloads, state(1, "10.1.0.1"))
    fd = workload.netns_fd
    workloads.remove(workload)
    with pytest.raises(OSError):
        os.fstat(fd)
    assert [*workloads] == []


def test_overlays_are_found_by_name(workloads: Registry) -> None:
    assert workloads.overlay_of("blue") is workloads.overlays[0]
    assert workloads.overlay_of("red") is None


def test_a_listener_has_a_host_endpoint(workloads: Registry) -> None:
    workload = add_workload(workloads, state(1, "10.1.0.1"))
    listener = listening(workload, 80, "192.0.2.1:20000")
    assert host_endpoint(listener) == Endpoint.parse("192.0.2.1:20000")
    assert workload.listener_for(parse_address("10.1.0.1"), 80) == listener
    assert workload.listener_for(parse_address("10.1.0.1"), 81) is None


def test_the_source_of_a_destination_is_asked_once(
    workloads: Registry, namespace: Namespace
) -> None:
    workload = add_workload(workloads, state(1, "10.1.0.1"))
    for _ in range(3):
        assert workload.source_for(parse_address("10.1.0.9")) == parse_address("10.1.0.1")
    assert namespace.asked == [parse_address("10.1.0.9")]
    namespace.has.clear()
    assert workload.source_for(parse_address("10.1.0.8")) is None


# --- what a namespace is ----------------------------------------------------------------------


def test_a_namespace_is_described_by_its_overlay_addresses(
    workloads: Registry, namespace: Namespace
) -> None:
    found = describe(workloads)
    assert (found.name, found.overlay, found.labels) == ("web", "blue", {"app": "web"})
    assert found.addresses == [packed16(parse_address("10.1.0.1"))]
    assert found.networks == [(packed16(BLUE.network_address), 16)]
    assert (found.isolated_ingress, found.isolated_egress) == (False, False)


def test_a_workload_without_a_name_is_called_after_its_cookie(
    workloads: Registry, namespace: Namespace
) -> None:
    assert describe(workloads, name=None).name == "netns-7"


def test_indexes_are_unique_and_used_again(workloads: Registry, namespace: Namespace) -> None:
    for cookie in (1, 2, 3):
        add_workload(workloads, describe(workloads, cookie=cookie))
    assert [workload.state.index for workload in workloads] == [0, 1, 2]
    workloads.remove(workloads.workloads[2])
    assert describe(workloads).index == 1


@pytest.mark.parametrize("direction", list(Direction))
def test_policy_isolates_each_direction(
    workloads: Registry, namespace: Namespace, plugins: FakePlugins, direction: Direction
) -> None:
    plugins.isolated = {direction}
    found = describe(workloads)
    assert found.isolated_ingress is (direction is Direction.INGRESS)
    assert found.isolated_egress is (direction is Direction.EGRESS)


def test_an_overlay_that_denies_the_unverified_isolates_egress(
    workloads: Registry, namespace: Namespace
) -> None:
    strict = OverlayConfig(name="blue", networks=(BLUE,), unverified="deny")
    workloads.overlays = (strict,)
    assert describe(workloads).isolated_egress


@pytest.mark.parametrize("overlay", [None, "blue", "red"])
def test_a_namespace_off_every_overlay_is_refused(
    workloads: Registry, namespace: Namespace, overlay: str | None
) -> None:
    namespace.has[:] = ["192.168.0.1"]
    with pytest.raises(ControlError, match="no address on") as caught:
        describe(workloads, overlay=overlay)
    assert caught.value.hint


def test_an_overlay_may_be_chosen_by_name(workloads: Registry, namespace: Namespace) -> None:
    other = OverlayConfig(
        name="red", networks=(ipaddress.ip_network("192.168.0.0/16"),), unverified=None
    )
    workloads.overlays = (*workloads.overlays, other)
    assert describe(workloads).overlay == "blue"
    found = describe(workloads, overlay="red")
    assert (found.overlay, found.addresses) == ("red", [packed16(parse_address("192.168.0.1"))])


# --- later containers, later addresses --------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "labels"), [("web", {"app": "web"}), (None, {}), (None, {"app": "web"}), ("web", {})]
)
def test_a_further_container_may_say_the_same_or_nothing(
    workloads: Registry, namespace: Namespace, name: str | None, labels: dict[str, str]
) -> None:
    workloads.check_same(describe(workloads), name, "default", labels)


@pytest.mark.parametrize(
    ("name", "space", "labels"),
    [
        ("db", "default", {}),
        ("web", "other", {}),
        ("web", "default", {"app": "db"}),
        ("web", "default", {"app": "web", "more": "x"}),
    ],
)
def test_a_further_container_must_not_contradict(
    workloads: Registry,
    namespace: Namespace,
    name: str,
    space: str,
    labels: dict[str, str],
) -> None:
    with pytest.raises(ControlError, match="already is workload 'web'"):
        workloads.check_same(describe(workloads), name, space, labels)


def test_new_addresses_replace_the_old_and_what_was_derived(
    workloads: Registry, namespace: Namespace
) -> None:
    workload = add_workload(workloads, describe(workloads))
    workload.source_for(parse_address("10.1.0.9"))
    assert not workloads.refresh_addresses(workload)
    namespace.has[:] = ["10.1.0.5"]
    assert workloads.refresh_addresses(workload)
    assert workload.addresses == [parse_address("10.1.0.5")]
    assert workload.source_for(parse_address("10.1.0.9")) == parse_address("10.1.0.5")


def test_losing_every_address_or_the_overlay_changes_nothing(
    workloads: Registry, namespace: Namespace
) -> None:
    workload = add_workload(workloads, describe(workloads))
    namespace.has.clear()
    assert not workloads.refresh_addresses(workload)
    workloads.overlays = ()
    assert not workloads.refresh_addresses(workload)
    assert workload.addresses == [parse_address("10.1.0.1")]


# --- bystanders -------------------------------------------------------------------------------


def test_without_an_overlay_address_a_container_may_be_a_bystander(
    workloads: Registry, namespace: Namespace
) -> None:
    namespace.has = ["192.168.0.1"]
    found = describe(workloads, membership="optional")
    assert (found.overlay, found.networks, found.addresses) == ("", [], [])
    assert workloads.add(found, os.open(os.devnull, os.O_RDONLY)).is_bystander


@pytest.mark.usefixtures("namespace")
def test_what_is_on_an_overlay_is_no_bystander_unless_it_is_the_host(workloads: Registry) -> None:
    assert describe(workloads, membership="optional").addresses == [
        packed16(parse_address("10.1.0.1"))
    ]
    assert describe(workloads, membership="never").addresses == []


@pytest.mark.parametrize("direction", Direction)
def test_what_policy_isolates_may_not_be_a_bystander(
    workloads: Registry, plugins: FakePlugins, namespace: Namespace, direction: Direction
) -> None:
    """Its policy would not be kept should an address come later."""
    namespace.has = ["192.168.0.1"]
    plugins.isolated.add(direction)
    with pytest.raises(ControlError, match="no address on any overlay"):
        describe(workloads, membership="optional")
