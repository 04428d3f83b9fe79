"""Playbooks of the pipeline: calls in, actions out; every branch of decide."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import sys

import msgspec
import pytest

from slim.broker import actions, calls
from slim.broker.connections import ConnectionRecord, pack
from slim.broker.endpoints import Endpoint, packed16, parse_address
from slim.broker.flows import DeniedFlow, FastFlow, FlowKey, OverlayFlow
from slim.broker.kernel.socket_options import TCP_CLOSE, TCP_ESTABLISHED, TCP_LISTEN
from slim.broker.listeners import ListenerRecord
from slim.broker.shaping import Shaping
from support.playbook import COOKIE, WORKLOAD, FakeView, Playbook, observed

HOST_NETNS = 1
DESTINATION = Endpoint.parse("10.1.0.2:5432")
DESTINATION6 = Endpoint.parse("[fd00:1::2]:5432")
KEY = FlowKey(WORKLOAD, None, DESTINATION)
FAST = FastFlow(
    source=parse_address("10.1.0.1"),
    host=Endpoint.parse("192.0.2.2:20001"),
    flow=9,
    peer="b",
    fallback_lawful=True,
    rule="rules:web",
    expires_s=100.0,
)
CONNECT = calls.Connect(3, socket.AF_INET, DESTINATION)
CONNECT6 = calls.Connect(3, socket.AF_INET6, DESTINATION6)


@pytest.fixture
def view() -> FakeView:
    return FakeView((ipaddress.ip_network("10.1.0.0/16"), ipaddress.ip_network("fd00:1::/64")))


@pytest.fixture
def play(view: FakeView) -> Playbook:
    return Playbook(view).on()


def connection() -> ConnectionRecord:
    return ConnectionRecord(
        cookie=COOKIE,
        workload=WORKLOAD,
        direction="out",
        local=pack(Endpoint.parse("10.1.0.1:40000")),
        peer=pack(DESTINATION),
        host_peer=pack(FAST.host),
        peer_host="b",
        path="fast",
        reason="",
        rule="",
        pid=1,
        created=0.0,
    )


def listener(address: str = "10.1.0.1", family: int = socket.AF_INET) -> ListenerRecord:
    return ListenerRecord(
        cookie=COOKIE,
        workload=WORKLOAD,
        family=family,
        address=packed16(ipaddress.ip_address(address)),
        dual_stack=False,
        port=80,
        host_address=packed16(parse_address("192.0.2.1")),
        host_port=20000,
        pid=1,
        created=0.0,
    )


# --- whose socket is it -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "asked",
    [
        CONNECT,
        calls.Bind(3, None),
        calls.Listen(3, 5),
        calls.Accept(3, 0, 0, 0),
        calls.GetName(3, 0, 0, peer=False),
        calls.FastOpenSend(3),
        calls.SetOption(3),
        calls.SetLimit(3, socket.SOL_SOCKET, socket.SO_PRIORITY, bytes(4)),
        calls.GetV6Only(3, 0, 0),
    ],
    ids=lambda asked: type(asked).__name__,
)
def test_calls_on_no_socket_are_the_kernels_to_fail(
    play: Playbook, asked: calls.SocketCall
) -> None:
    play.on_nothing().call(asked) >> actions.Proceed()


# --- connect, a socket of the program's own ---------------------------------------------------


def test_an_unknown_flow_is_asked_for(play: Playbook) -> None:
    play.call(CONNECT) >> actions.AskControl(KEY)


def test_a_bound_address_is_part_of_the_question(play: Playbook) -> None:
    key = FlowKey(WORKLOAD, parse_address("10.1.0.9"), DESTINATION)
    play.on(local="10.1.0.9:1234").call(CONNECT) >> actions.AskControl(key)


def test_a_wildcard_binding_is_no_source_address(play: Playbook) -> None:
    play.on(local="0.0.0.0:1234").call(CONNECT) >> actions.AskControl(KEY)


def test_a_known_fast_flow_connects_on_the_host(play: Playbook, view: FakeView) -> None:
    view.flows[KEY] = FAST
    play.call(CONNECT) >> actions.ConnectHost(FAST, KEY, 0)


def test_a_bound_port_goes_along(play: Playbook, view: FakeView) -> None:
    view.flows[KEY] = FAST
    play.on(local="0.0.0.0:1234").call(CONNECT) >> actions.ConnectHost(FAST, KEY, 1234)


def test_an_answer_is_used_without_looking_the_flow_up(play: Playbook, view: FakeView) -> None:
    view.flows[KEY] = DeniedFlow(errno.EACCES, "old", 1.0)
    play.answered(FAST).call(CONNECT) >> actions.ConnectHost(FAST, KEY, 0)
    assert view.asked == []


def test_a_denied_flow_is_refused_with_its_errno_and_rule(play: Playbook, view: FakeView) -> None:
    view.flows[KEY] = DeniedFlow(errno.ECONNREFUSED, "rules:no", 1.0)
    play.call(CONNECT) >> actions.Refuse(errno.ECONNREFUSED, "rules:no", DESTINATION)


def test_an_overlay_flow_proceeds_with_its_reason(play: Playbook, view: FakeView) -> None:
    view.flows[KEY] = OverlayFlow("no-listener", "default", 1.0)
    play.call(CONNECT) >> actions.Proceed("no-listener", "default", DESTINATION)


@pytest.mark.parametrize(
    ("facts", "asked"),
    [
        ({}, calls.Connect(3, socket.AF_UNSPEC, None)),
        ({}, calls.Connect(3, socket.AF_UNIX, None)),
        ({}, calls.Connect(3, -1, None)),
        ({}, calls.Connect(3, socket.AF_INET, Endpoint.parse("10.1.0.2:0"))),
        ({}, calls.Connect(3, socket.AF_INET, Endpoint.parse("10.2.0.2:80"))),
        ({"is_tcp": False}, CONNECT),
        ({"netns": HOST_NETNS}, CONNECT),
        ({"state": TCP_ESTABLISHED}, CONNECT),
        ({"state": TCP_LISTEN}, CONNECT),
        ({"local": "127.0.0.1:1"}, CONNECT),
        ({}, CONNECT6),
        ({}, calls.Connect(3, socket.AF_INET6, DESTINATION)),
        ({"domain": socket.AF_INET6}, CONNECT),
    ],
    ids=[
        "disconnect",
        "unix",
        "bad length",
        "port 0",
        "not overlay",
        "not tcp",
        "other namespace",
        "connected",
        "listening",
        "bound to loopback",
        "ipv6 on ipv4 socket",
        "mapped on ipv4 socket",
        "ipv4 on ipv6 socket",
    ],
)
def test_what_is_no_business_of_slim_proceeds_unasked(
    play: Playbook, view: FakeView, facts: dict[str, object], asked: calls.Connect
) -> None:
    play.on(**facts).call(asked) >> actions.Proceed()
    assert view.asked == []


@pytest.mark.parametrize("destination", [DESTINATION, DESTINATION6], ids=["mapped", "ipv6"])
def test_an_ipv6_socket_reaches_both_families(play: Playbook, destination: Endpoint) -> None:
    asked = calls.Connect(3, socket.AF_INET6, destination)
    key = FlowKey(WORKLOAD, None, destination)
    play.on(domain=socket.AF_INET6).call(asked) >> actions.AskControl(key)


def test_an_option_that_cannot_be_copied_means_overlay(play: Playbook, view: FakeView) -> None:
    view.flows[KEY] = FAST
    expected = actions.Proceed("TCP_ULP", "rules:web", DESTINATION)
    play.on(uncopyable="TCP_ULP").call(CONNECT) >> expected


def test_an_ipv4_socket_cannot_use_an_ipv6_underlay(play: Playbook, view: FakeView) -> None:
    flow = FastFlow(
        FAST.source, Endpoint.parse("[2001:db8::2]:20001"), 9, "b", True, "rules:web", 1.0
    )
    view.flows[KEY] = flow
    expected = actions.Proceed("ipv4-socket-ipv6-underlay", "rules:web", DESTINATION)
    play.call(CONNECT) >> expected


def test_an_ipv6_socket_uses_an_ipv6_underlay(play: Playbook, view: FakeView) -> None:
    host = Endpoint.parse("[2001:db8::2]:20001")
    flow = FastFlow(FAST.source, host, 9, "b", True, "rules:web", 1.0)
    key = FlowKey(WORKLOAD, None, DESTINATION6)
    view.flows[key] = flow
    play.on(domain=socket.AF_INET6).call(CONNECT6) >> actions.ConnectHost(flow, key, 0)


def test_an_ipv6_only_socket_cannot_use_an_ipv4_underlay(play: Playbook, view: FakeView) -> None:
    view.flows[FlowKey(WORKLOAD, None, DESTINATION6)] = FAST
    expected = actions.Proceed("ipv6-only-socket-ipv4-underlay", "rules:web", DESTINATION6)
    play.on(domain=socket.AF_INET6, v6only=True).call(CONNECT6) >> expected


def test_where_falling_back_is_unlawful_it_is_refused(play: Playbook, view: FakeView) -> None:
    flow = FastFlow(FAST.source, FAST.host, 9, "b", False, "rules:web", 1.0)
    view.flows[KEY] = flow
    view.errno_of_policy = errno.EHOSTUNREACH
    expected = actions.Refuse(errno.EHOSTUNREACH, "rules:web; TCP_ULP", DESTINATION)
    play.on(uncopyable="TCP_ULP").call(CONNECT) >> expected


# --- connect, a socket of ours ----------------------------------------------------------------


def ours(play: Playbook, state: int = TCP_ESTABLISHED, domain: int = socket.AF_INET) -> Playbook:
    return play.on(is_ours=True, netns=HOST_NETNS, state=state, domain=domain)


def test_connect_again_is_answered_from_the_record(play: Playbook, view: FakeView) -> None:
    record = view.connections[COOKIE] = connection()
    ours(play).call(CONNECT) >> actions.ConnectAgain(record)


def test_connect_on_a_host_listener_is_eisconn(play: Playbook) -> None:
    ours(play, TCP_LISTEN).call(CONNECT) >> actions.Return(errno.EISCONN)


def test_af_unspec_disconnects(play: Playbook, view: FakeView) -> None:
    view.connections[COOKIE] = connection()
    asked = calls.Connect(3, socket.AF_UNSPEC, None)
    ours(play).call(asked) >> actions.Disconnect(then_proceed=False)


def test_connect_without_a_record_starts_over(play: Playbook) -> None:
    ours(play, TCP_CLOSE).call(CONNECT) >> actions.Disconnect(then_proceed=True)


# --- accept -----------------------------------------------------------------------------------


def test_accept_takes_from_the_listener(play: Playbook, view: FakeView) -> None:
    record = view.listeners[COOKIE] = listener()
    asked = calls.Accept(3, 0, 0, socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    ours(play, TCP_LISTEN).call(asked) >> actions.TakeConnection(record)


def test_accept_with_unknown_flags_is_einval(play: Playbook, view: FakeView) -> None:
    view.listeners[COOKIE] = listener()
    asked = calls.Accept(3, 0, 0, 1)
    ours(play, TCP_LISTEN).call(asked) >> actions.Return(errno.EINVAL)


def test_accept_on_a_host_connection_is_einval(play: Playbook) -> None:
    ours(play).call(calls.Accept(3, 0, 0, 0)) >> actions.Return(errno.EINVAL)


def test_accept_on_the_programs_own_listener_proceeds(play: Playbook) -> None:
    play.on(state=TCP_LISTEN).call(calls.Accept(3, 0, 0, 0)) >> actions.Proceed()


# --- getsockname, getpeername -----------------------------------------------------------------

SOCKNAME = calls.GetName(3, 0x1000, 0x2000, peer=False)
PEERNAME = calls.GetName(3, 0x1000, 0x2000, peer=True)


@pytest.mark.parametrize("asked", [SOCKNAME, PEERNAME], ids=["sockname", "peername"])
def test_names_of_the_programs_own_sockets_are_the_kernels(
    play: Playbook, asked: calls.GetName
) -> None:
    play.call(asked) >> actions.Proceed()


def test_a_listener_has_its_overlay_name_and_no_peer(play: Playbook, view: FakeView) -> None:
    view.listeners[COOKIE] = listener()
    on = ours(play, TCP_LISTEN)
    on.call(SOCKNAME) >> actions.TellName(Endpoint.parse("10.1.0.1:80"))
    on.call(PEERNAME) >> actions.Return(errno.ENOTCONN)


def test_an_ipv6_listener_has_its_ipv6_name(play: Playbook, view: FakeView) -> None:
    view.listeners[COOKIE] = listener("::", socket.AF_INET6)
    on = ours(play, TCP_LISTEN, socket.AF_INET6)
    on.call(SOCKNAME) >> actions.TellName(Endpoint.parse("[::]:80"))


def test_a_connection_has_overlay_names(play: Playbook, view: FakeView) -> None:
    view.connections[COOKIE] = connection()
    ours(play).call(SOCKNAME) >> actions.TellName(Endpoint.parse("10.1.0.1:40000"))
    ours(play).call(PEERNAME) >> actions.TellName(DESTINATION)


def test_a_connection_that_was_reset_has_no_peer(play: Playbook, view: FakeView) -> None:
    view.connections[COOKIE] = connection()
    ours(play, TCP_CLOSE).call(PEERNAME) >> actions.Return(errno.ENOTCONN)


@pytest.mark.parametrize(
    ("domain", "name"), [(socket.AF_INET, "0.0.0.0:0"), (socket.AF_INET6, "[::]:0")]
)
def test_a_lost_record_never_shows_a_host_address(play: Playbook, domain: int, name: str) -> None:
    on = ours(play, domain=domain)
    on.call(SOCKNAME) >> actions.TellName(Endpoint.parse(name))
    on.call(PEERNAME) >> actions.Return(errno.ENOTCONN)


V6ONLY = calls.GetV6Only(3, 0x1000, 0x2000)


def test_v6only_of_the_programs_own_sockets_is_the_kernels(play: Playbook) -> None:
    play.on(domain=socket.AF_INET6).call(V6ONLY) >> actions.Proceed()


@pytest.mark.parametrize("dual_stack", [False, True])
def test_a_listener_shows_the_v6only_that_its_program_set(
    play: Playbook, view: FakeView, dual_stack: bool
) -> None:
    made = listener("::", socket.AF_INET6)
    view.listeners[COOKIE] = msgspec.structs.replace(made, dual_stack=dual_stack)
    on = ours(play, TCP_LISTEN, socket.AF_INET6)
    on.call(V6ONLY) >> actions.TellV6Only(not dual_stack)


def test_v6only_of_other_host_sockets_is_read_from_them(play: Playbook, view: FakeView) -> None:
    ours(play, domain=socket.AF_INET6).call(V6ONLY) >> actions.TellV6Only(None)
    view.listeners[COOKIE] = listener()
    ours(play, TCP_LISTEN).call(V6ONLY) >> actions.TellV6Only(None)


# --- listen, bind -----------------------------------------------------------------------------

LISTEN = calls.Listen(3, 5)


@pytest.mark.parametrize("local", [None, "0.0.0.0:80", "10.1.0.1:80", "[::]:80"])
def test_wildcard_and_overlay_listeners_get_a_host_listener(
    play: Playbook, local: str | None
) -> None:
    play.on(local=local).call(LISTEN) >> actions.ListenHost(5)


@pytest.mark.parametrize(
    "facts",
    [
        {"local": "127.0.0.1:80"},
        {"local": "192.0.2.1:80"},
        {"is_tcp": False},
        {"netns": HOST_NETNS},
        {"state": TCP_ESTABLISHED},
        {"uncopyable": "TCP_ULP"},
    ],
    ids=str,
)
def test_other_listeners_stay_as_they_are(play: Playbook, facts: dict[str, object]) -> None:
    play.on(**facts).call(LISTEN) >> actions.Proceed()


def test_listen_that_a_signal_interrupted_is_brokered_when_it_comes_again(play: Playbook) -> None:
    play.on(local="10.1.0.1:80", state=TCP_LISTEN).call(LISTEN) >> actions.ListenHost(5)


def test_fast_open_is_no_way_round_a_policy(play: Playbook, view: FakeView) -> None:
    play.on().call(calls.FastOpenSend(3)) >> actions.Proceed()
    view.isolated = True
    play.on().call(calls.FastOpenSend(3)) >> actions.Return(errno.EOPNOTSUPP)


@pytest.mark.parametrize(
    "facts", [{"state": TCP_ESTABLISHED}, {"is_tcp": False}, {"netns": HOST_NETNS}], ids=str
)
def test_fast_open_that_connects_nothing_on_the_overlay_goes_on(
    play: Playbook, view: FakeView, facts: dict[str, object]
) -> None:
    view.isolated = True
    play.on(**facts).call(calls.FastOpenSend(3)) >> actions.Proceed()


def test_listen_again_changes_the_backlog(play: Playbook, view: FakeView) -> None:
    record = view.listeners[COOKIE] = listener()
    ours(play, TCP_LISTEN).call(LISTEN) >> actions.ListenAgain(record, 5)


def test_listen_on_a_host_connection_is_einval(play: Playbook) -> None:
    ours(play).call(LISTEN) >> actions.Return(errno.EINVAL)


def test_bind_vacates_the_port_first(play: Playbook) -> None:
    asked = calls.Bind(3, Endpoint.parse("0.0.0.0:80"))
    play.call(asked) >> actions.VacatePort(80)


@pytest.mark.parametrize(
    ("facts", "local"),
    [
        ({}, None),
        ({}, Endpoint.parse("0.0.0.0:0")),
        ({"is_tcp": False}, Endpoint.parse("0.0.0.0:80")),
        ({"netns": HOST_NETNS}, Endpoint.parse("0.0.0.0:80")),
    ],
    ids=["no address", "any port", "not tcp", "other namespace"],
)
def test_other_binds_proceed(
    play: Playbook, facts: dict[str, object], local: Endpoint | None
) -> None:
    play.on(**facts).call(calls.Bind(3, local)) >> actions.Proceed()


def test_bind_on_a_socket_of_ours_is_einval(play: Playbook) -> None:
    asked = calls.Bind(3, Endpoint.parse("0.0.0.0:80"))
    ours(play).call(asked) >> actions.Return(errno.EINVAL)


# --- the rest ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "refused"),
    [(calls.FastOpenSend(3), errno.EISCONN), (calls.SetOption(3), errno.EPERM)],
)
def test_ways_out_are_closed_on_our_sockets_only(
    play: Playbook, asked: calls.SocketCall, refused: int
) -> None:
    ours(play).call(asked) >> actions.Return(refused)
    play.call(asked) >> actions.Proceed()


RATE = (socket.SOL_SOCKET, 47)
PRIORITY = (socket.SOL_SOCKET, socket.SO_PRIORITY)
TOS = (socket.IPPROTO_IP, socket.IP_TOS)
TCLASS = (socket.IPPROTO_IPV6, socket.IPV6_TCLASS)
FIVE = (5).to_bytes(4, sys.byteorder)


@pytest.mark.parametrize("option", [RATE, PRIORITY, TOS, TCLASS])
def test_an_option_is_set_for_the_program_where_policy_has_no_word(
    play: Playbook, option: tuple[int, int]
) -> None:
    """Never by the program's own call: the fd could be exchanged for a limited one meanwhile."""
    asked = calls.SetLimit(3, *option, FIVE)
    play.call(asked) >> actions.SetWithinLimits(*option, FIVE, None)
    ours(play).call(asked) >> actions.SetWithinLimits(*option, FIVE, None)


@pytest.mark.parametrize(
    ("option", "shaping", "is_fixed"),
    [
        (RATE, Shaping(send=1_000), False),
        (PRIORITY, Shaping(priority=2), True),
        (PRIORITY, Shaping(dscp=2), False),
        (TOS, Shaping(dscp=2), True),
        (TCLASS, Shaping(dscp=0), True),
        (TOS, Shaping(priority=2), False),
    ],
)
def test_what_policy_fixes_a_program_sets_without_effect(
    play: Playbook, view: FakeView, option: tuple[int, int], shaping: Shaping, is_fixed: bool
) -> None:
    record = view.limits[COOKIE] = connection().limited_by(shaping, None)
    expected: actions.Action = actions.SetWithinLimits(*option, FIVE, record)
    ours(play).call(calls.SetLimit(3, *option, FIVE)) >> (
        actions.Return(0) if is_fixed else expected
    )


@pytest.mark.parametrize("number", [-1, 7])
def test_priorities_that_take_a_capability_are_the_kernels_to_judge(
    play: Playbook, number: int
) -> None:
    asked = calls.SetLimit(3, *PRIORITY, number.to_bytes(4, sys.byteorder, signed=True))
    play.call(asked) >> actions.Proceed()
    ours(play).call(asked) >> actions.Return(errno.EPERM)


def test_values_that_are_too_short_are_einval(play: Playbook) -> None:
    ours(play).call(calls.SetLimit(3, *RATE, b"xyz")) >> actions.Return(errno.EINVAL)
    ours(play).call(calls.SetLimit(3, *TOS, b"x")) >> actions.SetWithinLimits(*TOS, b"x", None)


def test_epoll_create_is_answered_with_a_set(play: Playbook) -> None:
    play.on_nothing().call(calls.CreateEpoll(0)) >> actions.MakeEpoll(0)
    play.on_nothing().call(calls.CreateEpoll(os.O_CLOEXEC)) >> actions.MakeEpoll(os.O_CLOEXEC)


@pytest.mark.parametrize("flags", [-1, 1, os.O_CLOEXEC | 1])
def test_epoll_create_with_bad_flags_is_einval(play: Playbook, flags: int) -> None:
    play.on_nothing().call(calls.CreateEpoll(flags)) >> actions.Return(errno.EINVAL)


def test_a_failing_playbook_prints_what_happened(play: Playbook) -> None:
    with pytest.raises(AssertionError, match=r"Listen(.|\n)*gave ListenHost(.|\n)*expected Proc"):
        play.call(LISTEN) >> actions.Proceed()
    assert observed().facts.cookie == COOKIE
