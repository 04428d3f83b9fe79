"""SIGHUP and slimctl reload: all of it or nothing, and what cannot change is named."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pytest
from lab.commands import run

from slim.broker.admin import messages
from support.policies import ALLOW, config_file, deny, put_in_force, reload, write_rules
from support.polling import eventually
from support.probes import peers
from support.two_hosts import BIN, TwoHosts, Workload, issue_certificate

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_netns]

PORT = 8000


@pytest.fixture(scope="module")
def greeter(server: Workload) -> Workload:
    server.probe(peers.greet_server, "0.0.0.0", PORT).result()
    return server


@pytest.fixture(autouse=True)
def as_it_was(hosts: TwoHosts) -> Iterator[None]:
    """What a test does to the files of host a is undone."""
    directory = config_file(hosts, "a").parent
    before = {file: file.read_bytes() for file in directory.iterdir()}
    yield
    for file, content in before.items():
        file.write_bytes(content)
    put_in_force(hosts, "a", ALLOW)


def replace_in_config(hosts: TwoHosts, old: str, new: str) -> None:
    file = config_file(hosts, "a")
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def test_every_mistake_is_told_and_everything_stays(
    hosts: TwoHosts, client: Workload, greeter: Workload
) -> None:
    """Of the certificate, of a plugin's settings, of the host: all in one go."""
    staying = client.probe(peers.stay, greeter.address4, PORT)
    staying.result()
    write_rules(hosts, "a", deny("no", "client", direction="egress") + "port = 1\n")
    replace_in_config(hosts, f'"{hosts.host("a").address4}", ', '"192.0.2.77", ')
    replace_in_config(hosts, f'listen = "{hosts.host("a").address4}', 'listen = "192.0.2.77')
    config_file(hosts, "a").with_name("a.crt").write_text("no certificate\n")

    answer = reload(hosts, "a")

    said = "\n".join(mistake.message for mistake in answer.mistakes)
    assert len(answer.mistakes) == 3
    assert all(mistake.hint for mistake in answer.mistakes)
    for part in ("192.0.2.77 is not assigned", "a.crt", "[plugins.rules]"):
        assert part in said
    for mistake in answer.mistakes:
        assert mistake.message in hosts.log("a")
    staying.tell("echo")
    assert staying.result() == 1000
    assert "peer" in client.call(peers.try_visit, greeter.address4, PORT)


def test_a_file_that_cannot_be_read_at_all_changes_nothing(
    hosts: TwoHosts, client: Workload, greeter: Workload
) -> None:
    epoch = hosts.status("a").counters["policy_epoch"]
    config_file(hosts, "a").write_text("guard = \n")
    (mistake,) = reload(hosts, "a").mistakes
    assert "slimd.toml" in mistake.message
    assert hosts.status("a").counters["policy_epoch"] == epoch
    assert "peer" in client.call(peers.try_visit, greeter.address4, PORT)


def test_what_cannot_change_is_named_and_the_rest_is_in_force(
    hosts: TwoHosts, client: Workload, greeter: Workload
) -> None:
    write_rules(hosts, "a", deny("no-client", "client", direction="egress"))
    replace_in_config(hosts, 'ports = "20000-29999"', 'ports = "21000-21999"')
    replace_in_config(hosts, 'run_dir = "/run/slim"', 'run_dir = "/run/slimmer"')

    assert reload(hosts, "a") == messages.Reloaded([], ["run_dir", "[host] ports"])

    assert "[host] ports changed: restart slimd" in hosts.log("a")
    assert hosts.status("a").host_ports == "20000-29999"
    assert client.call(peers.try_visit, greeter.address4, PORT) == {"errno": errno.EACCES}


def test_the_errno_of_policy_and_the_limits_change_without_a_new_traps(
    hosts: TwoHosts, client: Workload, greeter: Workload
) -> None:
    traps = hosts.pid("a", "traps")
    replace_in_config(hosts, "connect_budget_ms = 5000", "connect_budget_ms = 4000")
    rules = deny("no-client", "client", direction="egress")
    put_in_force(hosts, "a", '[policy]\nerrno = "ECONNREFUSED"\n' + rules)
    seen = client.call(peers.try_visit, greeter.address4, PORT)
    assert seen == {"errno": errno.ECONNREFUSED}
    assert hosts.pid("a", "traps") == traps


def test_a_renewed_certificate_is_taken_over(
    hosts: TwoHosts, client: Workload, greeter: Workload
) -> None:
    """Which channels show it: tests/unit/broker/peers."""
    directory = config_file(hosts, "a").parent
    issue_certificate(hosts.authority, "a", ("10.77.1.0/24", "fd77:0:0:1::/64"), directory)
    assert reload(hosts, "a") == messages.Reloaded([], [])
    assert "peer" in client.call(peers.try_visit, greeter.address4, PORT)


def test_a_certificate_of_another_host_is_refused(hosts: TwoHosts) -> None:
    directory = config_file(hosts, "a").parent
    issue_certificate(hosts.authority, "a", ("10.77.1.0/24",), directory)
    other = hosts.directory("other")
    words = ("--network", "10.77.1.0/24", "--out", str(other))
    run(str(BIN / "slimctl"), "pki", "issue", str(hosts.authority), "c", *words)
    for suffix in ("crt", "key"):
        (directory / f"a.{suffix}").write_bytes((other / f"c.{suffix}").read_bytes())
    (mistake,) = reload(hosts, "a").mistakes
    assert "certificate of 'c'" in mistake.message


def test_an_overlay_that_is_in_use_stays(hosts: TwoHosts, client: Workload) -> None:
    client.run("true")
    staying = client.start("sleep", "20")
    eventually(lambda: hosts.status("a").containers, "the container is there")
    replace_in_config(hosts, 'name = "lab"', 'name = "labs"')
    (mistake,) = reload(hosts, "a").mistakes
    assert "'lab' is gone, and workload 'client' is on it" in mistake.message
    staying.stop()
